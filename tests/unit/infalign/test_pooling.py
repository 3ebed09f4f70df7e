"""Pooled quantiles against the quantiles of the prompts themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign import BestOfN, CalibrationTable, Combination, InvalidValue, PooledQuantiles, Target, WorstOfN
from infalign.pooling import MAX_PROMPTS


def pooled_of(rewards: np.ndarray) -> PooledQuantiles:
    return PooledQuantiles.of(Combination((CalibrationTable(tuple(map(str, range(len(rewards)))), rewards),)))


def test_prompts_that_do_not_differ_translate_to_themselves() -> None:
    rewards = np.random.default_rng(0).normal(size=(400, 32))
    pooled = pooled_of(rewards)
    assert np.mean(pooled.own) == pytest.approx(0.5, abs=1e-9)
    assert np.mean(np.abs(pooled.own - pooled.pooled)) < 0.08
    assert pooled.miss_probability(0.99, Target(BestOfN(8), 0.5)) < 0.01
    assert pooled.miss_probability(0.5, Target(BestOfN(8), 0.9)) > 0.99
    assert pooled.miss_probability(0.01, Target(WorstOfN(8), 0.5)) < 0.01


def test_prompts_that_differ_make_pooled_quantiles_unsure() -> None:
    rng = np.random.default_rng(1)
    alike, unlike = rng.normal(size=(400, 32)), rng.normal(size=(400, 32)) + rng.normal(0, 3, size=(400, 1))
    for procedure, quantile in ((BestOfN(8), 0.95), (WorstOfN(8), 0.05)):
        rule = Target(procedure, 0.9 if isinstance(procedure, BestOfN) else 0.1)
        assert pooled_of(unlike).miss_probability(quantile, rule) > 0.4
        assert pooled_of(unlike).miss_probability(quantile, rule) > pooled_of(alike).miss_probability(quantile, rule)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 1))
def test_any_calibration_translates(prompts: int, samples: int, quantile: float) -> None:
    pooled = pooled_of(np.arange(float(prompts * samples)).reshape(prompts, samples) % 4)
    assert 0 <= pooled.miss_probability(quantile, Target(BestOfN(4), 0.9)) <= 1
    assert np.all((pooled.own >= 0) & (pooled.own <= 1))


def test_several_reward_models_are_read_as_the_server_reads_them() -> None:
    rng = np.random.default_rng(2)
    keys = tuple(map(str, range(50)))
    tables = tuple(CalibrationTable(keys, rng.normal(size=(50, 16)) + rng.normal(size=(50, 1))) for _ in range(2))
    combination = Combination(tables, (2.0, 1.0))
    pooled = PooledQuantiles.of(combination)
    rewards = np.stack([table.rewards.ravel() for table in tables], axis=-1)
    read = combination.table.pooled_calibration.quantile(combination.combine(["unknown"] * len(rewards), rewards))
    np.testing.assert_allclose(pooled.pooled, np.sort(read), atol=1e-12)


def test_many_prompts_are_sampled() -> None:
    assert pooled_of(np.random.default_rng(3).normal(size=(2 * MAX_PROMPTS, 2))).own.size == 2 * MAX_PROMPTS


def test_quantiles_of_other_shapes_are_refused() -> None:
    with pytest.raises(InvalidValue, match="own"):
        PooledQuantiles(np.zeros(3), np.zeros(2))
