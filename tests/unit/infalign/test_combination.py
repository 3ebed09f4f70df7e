"""Several rewards as one: what a combined quantile keeps of a single one, and what it must not depend on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign import Calibration, CalibrationTable, Combination, Estimator, Goodness, InvalidValue
from infalign.combination import CombinedTable

GRID = st.integers(-8, 8).map(float)
WEIGHTS = st.tuples(*[st.sampled_from([0.3, 1.0, 2.5])] * 2)
KEYS = ("a", "b")


@st.composite
def references(draw: st.DrawFn, models: int = 2) -> np.ndarray:
    """(2 prompts, K responses, M models) rewards, with ties."""
    k = draw(st.integers(1, 12))
    return np.array(draw(st.lists(GRID, min_size=2 * k * models, max_size=2 * k * models))).reshape(2, k, models)


def combination(rewards: np.ndarray, weights: tuple[float, ...] = (1.0, 1.0)) -> Combination:
    tables = [CalibrationTable(KEYS[: len(rewards)], rewards[..., i]) for i in range(rewards.shape[-1])]
    return Combination(tuple(tables), weights)


def quantiles(combined: Combination, rewards: np.ndarray, key: str = "a") -> np.ndarray:
    """Of responses to one prompt, with rewards of shape (n, M)."""
    keys = [key] * len(rewards)
    return combined.table.quantile(keys, combined.combine(keys, rewards))


@given(references(models=1), st.lists(GRID, min_size=1, max_size=5), st.sampled_from([*KEYS, "unknown"]))
def test_one_model_is_its_own_reward_and_table(rewards: np.ndarray, fresh: list[float], key: str) -> None:
    alone = combination(rewards, (2.0,))
    responses = np.array(fresh)[:, None]
    assert alone.table is alone.tables[0]
    assert np.array_equal(alone.combine([key] * len(fresh), responses), fresh)
    assert np.array_equal(quantiles(alone, responses, key), alone.tables[0].lookup(key).quantile(fresh))


@given(references(models=1), st.lists(GRID, min_size=1, max_size=5), st.sampled_from([*KEYS, "unknown"]))
def test_twice_the_same_model_is_that_model(rewards: np.ndarray, fresh: list[float], key: str) -> None:
    twice = combination(np.repeat(rewards, 2, axis=-1), (1.0, 0.3))
    found = quantiles(twice, np.repeat(np.array(fresh)[:, None], 2, axis=-1), key)
    assert found == pytest.approx(twice.tables[0].lookup(key).quantile(fresh))
    assert twice.table.lookup(key).scope == ("global" if key == "unknown" else "prompt")


@given(references(), st.lists(st.tuples(GRID, GRID), min_size=1, max_size=5))
def test_a_model_that_weighs_next_to_nothing_decides_nothing(rewards: np.ndarray, fresh: list) -> None:
    only = combination(rewards, (1.0, 1e-15))
    first = np.array(fresh)[:, 0]
    assert quantiles(only, np.array(fresh)) == pytest.approx(only.tables[0].lookup("a").quantile(first))


@given(
    references(),
    WEIGHTS,
    st.lists(st.tuples(GRID, GRID), min_size=1, max_size=5),
    st.sampled_from([*KEYS, "unknown"]),
    st.sampled_from([np.exp, np.cbrt, lambda reward: 3 * reward - 1]),
)
def test_any_increasing_map_of_one_models_rewards_changes_nothing(
    rewards: np.ndarray, weights: tuple, fresh: list, key: str, increasing: np.ufunc
) -> None:
    responses = np.array(fresh)
    before = quantiles(combination(rewards, weights), responses, key)
    mapped, responses = rewards.copy(), responses.copy()
    mapped[..., 1], responses[:, 1] = increasing(rewards[..., 1]), increasing(responses[:, 1])
    assert np.array_equal(quantiles(combination(mapped, weights), responses, key), before)


@given(references(), WEIGHTS, st.tuples(GRID, GRID), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_what_no_model_prefers_ranks_no_higher(rewards: np.ndarray, weights: tuple, low: tuple, more: tuple) -> None:
    below, above = quantiles(combination(rewards, weights), np.array([low, np.add(low, more)]))
    assert below <= above
    every = combination(rewards, weights).combine(
        ["a"] * 3, [low, rewards[0].min(axis=0) - 1, rewards[0].max(axis=0) + 1]
    )
    assert every[1] == 0 <= every[0] <= 1 == every[2]


@given(references(), WEIGHTS)
def test_a_repeated_reference_ties_with_itself(rewards: np.ndarray, weights: tuple) -> None:
    combined = combination(rewards, weights)
    for row, key in enumerate(KEYS):
        assert np.array_equal(combined.combine([key] * len(rewards[row]), rewards[row]), combined.table.rewards[row])


@given(references(), WEIGHTS)
def test_a_references_own_quantile_is_its_rank_among_the_others(rewards: np.ndarray, weights: tuple) -> None:
    combined, k = combination(rewards, weights), rewards.shape[1]
    expected = np.zeros(k)
    for one in range(k):
        others = np.delete(rewards[0], one, axis=0)
        rank = [
            np.sum(others[:, i] < rewards[0, one, i]) + np.sum(others[:, i] == rewards[0, one, i]) / 2 for i in (0, 1)
        ]
        expected[one] = np.average((np.array(rank) + 0.5) / k, weights=weights)
    assert combined.table.rewards[0] == pytest.approx(expected)


@given(references(), WEIGHTS)
def test_a_fresh_and_a_stored_draw_are_alike(rewards: np.ndarray, weights: tuple) -> None:
    """Whichever of K + 1 draws is the fresh one, on average it beats as many stored ones as beat it."""
    drawn = rewards[0]
    if len(drawn) < 2:
        return
    ranks = []
    for fresh in range(len(drawn)):
        stored = combination(np.delete(drawn, fresh, axis=0)[None], weights)
        ranks.append(stored.table.lookup("a").rank(stored.combine(["a"], drawn[None, fresh]))[0])
    assert np.mean(ranks) == pytest.approx((len(drawn) - 1) / 2)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.9])
@pytest.mark.parametrize("k", [8, 64])
def test_fresh_draws_have_uniform_quantiles(correlation: float, k: int) -> None:
    rng = np.random.default_rng(0)
    prompts = 4000
    law = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=(prompts, k + 1))
    law[..., 1] = np.exp(5 * law[..., 1])  # another scale, far from normal
    keys = tuple(map(str, range(prompts)))
    tables = tuple(CalibrationTable(keys, law[:, :k, i], resolution=1e-12) for i in (0, 1))
    combined = Combination(tables, (1.0, 2.0))
    fresh = combined.combine(keys, law[:, k])
    found = Goodness.of(combined.table, keys, fresh[:, None], permutations=0)
    assert found.mean_quantile == pytest.approx(0.5, abs=4 * 0.29 / np.sqrt(prompts))
    assert found.distance < 0.03


def test_an_unknown_prompt_is_read_from_what_is_pooled() -> None:
    rewards = np.random.default_rng(0).normal(size=(2, 40, 2))
    combined = combination(rewards)
    assert isinstance(combined.table, CombinedTable)
    pool = combination(rewards.reshape(1, 80, 2))
    fresh = np.random.default_rng(1).normal(size=(30, 2))
    assert combined.combine(["unknown"] * 30, fresh) == pytest.approx(pool.combine(["a"] * 30, fresh))
    found = combined.table.lookup("unknown")
    assert (found.scope, found.samples) == ("global", 80)
    assert quantiles(combined, fresh, "unknown") == pytest.approx(quantiles(pool, fresh))


def test_many_responses_to_many_prompts_at_once() -> None:
    rewards = np.random.default_rng(0).normal(size=(2, 7, 3))
    combined = combination(rewards, (1.0, 2.0, 3.0))
    fresh = np.random.default_rng(1).normal(size=(2, 5, 3))
    found = combined.combine(KEYS, fresh)
    assert found.shape == (2, 5)
    for row, key in enumerate(KEYS):
        single = [
            Calibration(rewards[row, :, i], estimator=Estimator.RANK).quantile(fresh[row, :, i]) for i in range(3)
        ]
        assert found[row] == pytest.approx(np.average(single, axis=0, weights=(1, 2, 3)))
        assert found[row] == pytest.approx(combined.combine([key] * 5, fresh[row]))


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
def test_weights_are_positive_and_one_for_each(weights: tuple[float, ...]) -> None:
    with pytest.raises(InvalidValue, match="weights: got"):
        combination(np.zeros((2, 3, 2)), weights)


def test_tables_of_other_prompts_or_responses_are_refused() -> None:
    table = CalibrationTable(KEYS, np.zeros((2, 3)))
    for other in (CalibrationTable(("a", "c"), np.zeros((2, 3))), CalibrationTable(KEYS, np.zeros((2, 4)))):
        with pytest.raises(InvalidValue, match=r"tables: got '2 x . *', accepted: the 2 x 3 of the first"):
            Combination((table, other), (1.0, 1.0))
    with pytest.raises(InvalidValue, match=r"rewards: got \(2, 3\), accepted: \(2, ..., 2\)"):
        combination(np.zeros((2, 3, 2))).combine(KEYS, np.zeros((2, 3)))
