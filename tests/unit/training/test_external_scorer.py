"""Rewards that no model computes, in training: what is asked again, and what ends the run."""

from collections.abc import Sequence
from typing import Any

import pytest

from infalign.rewards import OpenReward, RewardFailed
from training import scorer as module
from training.scorer import ExternalScorer

PROMPT = [{"role": "user", "content": "why"}]


class Slow(OpenReward):
    """Has no time for one response of three at its first calls, and cannot read some."""

    batch = 8

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[list[str]] = []

    def score(self, prompts: Any, responses: Sequence[str]) -> list[float]:
        raise NotImplementedError

    def score_each(self, prompts: Any, responses: Sequence[str]) -> list[float | RewardFailed]:
        self.calls.append(list(responses))
        results: list[float | RewardFailed] = [float(len(response)) for response in responses]
        if "bad" in responses:
            results[list(responses).index("bad")] = RewardFailed("it cannot read this")
        if len(self.calls) <= self.failures:
            results[-1] = RewardFailed("no time was left", is_of_content=False)
        return results

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))


def score(reward: Slow, *responses: str) -> list[float]:
    return list(ExternalScorer(reward).score([PROMPT] * len(responses), responses))


def test_only_what_has_no_reward_yet_is_scored_again() -> None:
    reward = Slow(failures=2)
    assert score(reward, "a", "bb", "ccc", "bb") == [1.0, 2.0, 3.0, 2.0]
    assert reward.calls == [["a", "bb", "ccc"], ["ccc"], ["ccc"]]


def test_after_three_attempts_the_run_ends() -> None:
    reward = Slow(failures=9)
    with pytest.raises(RewardFailed, match="no time was left"):
        score(reward, "a", "bb")
    assert len(reward.calls) == 3


def test_a_response_that_cannot_be_scored_ends_the_run_at_once() -> None:
    reward = Slow(failures=9)
    with pytest.raises(RewardFailed, match="cannot read"):
        score(reward, "bad", "a")
    assert len(reward.calls) == 1
