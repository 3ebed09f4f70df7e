import numpy as np
import pytest
from scipy.stats import kstest

from infalign import CalibrationTable, Goodness, InvalidValue


def assessed(anchors: np.ndarray, held_out: np.ndarray, **options: int) -> Goodness:
    table = CalibrationTable(tuple(map(str, range(len(anchors)))), anchors)
    return Goodness.of(table, table.keys, list(held_out), **options)


def test_draws_of_the_same_law_pass_and_of_another_fail() -> None:
    rng = np.random.default_rng(3)
    anchors = rng.normal(size=(200, 32))
    same, shifted = rng.normal(size=(200, 16)), rng.normal(0.2, 1, size=(200, 16))
    good, bad = assessed(anchors, same), assessed(anchors, shifted)
    assert good.p_value > 0.05
    assert bad.p_value <= 0.01
    assert bad.distance > 2 * good.distance
    assert (good.prompts, good.samples, good.draws) == (200, 32, 3200)
    assert good.mean_quantile == pytest.approx(0.5, abs=0.02)
    assert bad.mean_quantile > 0.53
    assert (good.tie_rate, good.resolution) == (pytest.approx(0, abs=1e-4), pytest.approx(1 / 33, rel=1e-3))


def test_p_values_are_uniform_although_draws_share_anchors_and_tie() -> None:
    """Kolmogorov's own p-value would reject nearly always here: draws of one prompt are not independent."""
    rng = np.random.default_rng(1)
    seen = [
        assessed(
            np.round(rng.normal(size=(10, 6)), 1), np.round(rng.normal(size=(10, 30)), 1), permutations=39, seed=i
        ).p_value
        for i in range(200)
    ]
    assert kstest(np.array(seen) - 1 / 80, "uniform").pvalue > 0.01


def test_ties_are_spread_over_their_ranks() -> None:
    all_tied = assessed(np.zeros((3, 4)), np.zeros((3, 5)), permutations=0)
    assert all_tied.histogram == pytest.approx(np.full(5, 0.2))
    assert all_tied.distance == pytest.approx(0)
    assert np.isnan(all_tied.p_value)
    assert (all_tied.tie_rate, all_tied.resolution, all_tied.mean_quantile) == (1, 0.5, 0.5)
    above = assessed(np.zeros((1, 4)), np.ones((1, 5)), permutations=0)
    assert above.histogram == pytest.approx([0, 0, 0, 0, 1])
    assert above.distance == pytest.approx(0.8)


def test_unknown_prompts_and_missing_rows_are_refused() -> None:
    table = CalibrationTable(("a", "b"), np.zeros((2, 3)))
    with pytest.raises(InvalidValue, match="keys: got 'c'"):
        Goodness.of(table, ["c"], [[1.0]])
    with pytest.raises(InvalidValue, match="rewards: got 1, accepted: 2"):
        Goodness.of(table, ["a", "b"], [[1.0]])
    with pytest.raises(InvalidValue, match="rewards: got nan"):
        Goodness.of(table, ["a"], [[np.nan]])
