"""Rewards that are scored again: how far they may be off, and what is said where they are further off."""

import math

import numpy as np
import pytest
from scipy.special import expit

from infalign import CalibrationTable
from infalign.errors import RewardMismatch
from infalign.reproduction import SHIFT, Reproduction

EXPECTED = [3.0, -2.0, 0.5, 4.0]


def table(rewards: np.ndarray) -> CalibrationTable:
    return CalibrationTable(tuple(f"{row:032x}" for row in range(len(rewards))), rewards)


def test_the_tolerance_moves_quantiles_by_so_much_on_average() -> None:
    random = np.random.default_rng(0)
    rewards = random.normal(size=(300, 128)) * 3 + random.normal(size=(300, 1)) * 50  # prompts differ far more
    tolerance = Reproduction.of("reward", EXPECTED, table(rewards)).tolerance
    fresh = random.normal(size=(300, 128)) * 3 + rewards.mean(axis=1, keepdims=True)
    calibrated = table(rewards)
    moved = calibrated.quantile(calibrated.keys, fresh + tolerance) - calibrated.quantile(calibrated.keys, fresh)
    assert np.abs(moved).mean() == pytest.approx(SHIFT, rel=0.1)


@pytest.mark.parametrize(
    "rewards",
    [
        np.ones((5, 8)),  # constant
        np.repeat([[1.0, 2.0, 3.0, 4.0]], 4, axis=1),  # pairs tie more often than the tolerance may move quantiles
        np.array([[1.0]]),  # K = 1
        np.arange(16.0).reshape(2, 8) * 1e-6,  # all within the grid
    ],
    ids=["constant", "ties", "one anchor", "within the grid"],
)
def test_where_rewards_tie_or_tell_nothing_only_the_grid_is_accepted(rewards: np.ndarray) -> None:
    assert Reproduction.of("reward", EXPECTED, table(rewards)).tolerance == 1e-4


def test_the_largest_difference_is_told_of_the_examples_that_were_scored() -> None:
    trial = Reproduction("reward", np.array(EXPECTED), 0.1)
    assert trial.compare([3.05, -2.01, 0.5, 4.0], range(4)) == pytest.approx(0.05)
    assert trial.compare([0.5, 4.02], [2, 3]) == pytest.approx(0.02)
    with pytest.raises(RewardMismatch, match=r"Response 4 of 4 in calibration/examples\.jsonl has 5, expected 4\. The"):
        trial.compare([0.5, 5.0], [2, 3])


@pytest.mark.parametrize(
    ("rewards", "cause"),
    [
        (np.array(EXPECTED) + 0.2, "all differ a little: the model runs in another data type"),
        (expit(EXPECTED), "a sigmoid: an activation is applied"),
        (-np.array(EXPECTED), "the sign turned"),
        (np.array([0.1, 0.3, 0.2, 0.9]), "they differ much: another model, tokenizer or chat template"),
        (np.array([3.0, math.nan, 0.5, 4.0]), "not all are numbers, as where float16 overflows"),
        (np.array([3.0, -2.0, 0.5, math.inf]), "not all are numbers"),
    ],
    ids=["rounded", "sigmoid", "sign", "another model", "nan", "infinite"],
)
def test_the_likely_cause_is_named(rewards: np.ndarray, cause: str) -> None:
    with pytest.raises(RewardMismatch, match=cause) as refused:
        Reproduction("reward", np.array(EXPECTED), 0.1).compare(rewards.tolist(), range(4))
    assert str(refused.value).startswith("the reward model reward does not give the rewards that the bundle was")
    assert "accepted 0.1 " in str(refused.value)
