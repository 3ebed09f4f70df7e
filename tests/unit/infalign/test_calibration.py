import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution
from scipy.stats import percentileofscore

from infalign import BestOfN, Calibration, CalibrationTable, Estimator, InvalidValue, WorstOfN

GRID = st.integers(-50, 50).map(lambda tick: tick / 4)
ANCHORS = st.lists(GRID, min_size=1, max_size=40).map(np.array)


def calibration(anchors: object, estimator: Estimator = Estimator.RANK) -> Calibration:
    return Calibration(np.asarray(anchors, dtype=float), estimator=estimator)


@given(ANCHORS, GRID)
def test_rank_estimator_is_scipys_mean_percentile(anchors: np.ndarray, reward: float) -> None:
    expected = percentileofscore(anchors, reward, kind="mean") / 100
    assert calibration(anchors).quantile(reward) == pytest.approx(expected)


@given(ANCHORS, st.lists(GRID, min_size=2, max_size=20), st.sampled_from(Estimator))
def test_quantile_is_monotone_in_the_reward(anchors: np.ndarray, rewards: list[float], estimator: Estimator) -> None:
    quantiles = calibration(anchors, estimator).quantile(sorted(rewards))
    assert np.all(np.diff(quantiles) >= 0)
    assert np.all((quantiles >= 0) & (quantiles <= 1))


@given(ANCHORS, st.sampled_from(Estimator))
def test_anchors_themselves_average_one_half(anchors: np.ndarray, estimator: Estimator) -> None:
    assert np.mean(calibration(anchors, estimator).quantile(anchors)) == pytest.approx(0.5)


@given(ANCHORS, GRID, st.sampled_from(Estimator))
def test_negated_rewards_have_the_mirrored_quantile(anchors: np.ndarray, reward: float, estimator: Estimator) -> None:
    direct = calibration(anchors, estimator).quantile(reward)
    assert calibration(-anchors, estimator).quantile(-reward) == pytest.approx(1 - direct)


@given(ANCHORS, GRID, st.floats(0.01, 100), st.floats(-100, 100))
def test_increasing_affine_maps_of_the_reward_change_nothing(
    anchors: np.ndarray, reward: float, scale: float, shift: float
) -> None:
    moved = calibration(scale * anchors + shift)
    fine = Calibration(anchors, estimator=Estimator.RANK)
    assert moved.quantile(scale * reward + shift) == pytest.approx(fine.quantile(reward))


@given(ANCHORS, st.sampled_from([Estimator.JEFFREYS, Estimator.BAYES]))
def test_rewards_beyond_the_anchors_are_clipped_inside_zero_and_one(anchors: np.ndarray, estimator: Estimator) -> None:
    low, high = calibration(anchors, estimator).quantile([-1e9, 1e9])
    k, a = len(anchors), estimator.prior
    assert (low, high) == (pytest.approx(a / (k + 2 * a)), pytest.approx((k + a) / (k + 2 * a)))
    assert 0 < low < high < 1


@given(ANCHORS, GRID, st.floats(0.05, 0.99))
def test_interval_is_the_beta_posteriors(anchors: np.ndarray, reward: float, level: float) -> None:
    known = calibration(anchors, Estimator.JEFFREYS)
    rank = float(known.rank(reward))
    posterior = beta_distribution(rank + 0.5, len(anchors) - rank + 0.5)
    low, high = known.interval(reward, level)
    assert low == pytest.approx(posterior.ppf((1 - level) / 2), abs=1e-9)
    assert high == pytest.approx(posterior.ppf((1 + level) / 2), abs=1e-9)
    assert posterior.mean() == pytest.approx(float(known.quantile(reward)))


def test_interval_covers_the_true_quantile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(size=4000)
    covered = [
        low <= u <= high
        for u, anchors in zip(true, rng.uniform(size=(4000, 32)), strict=True)
        for low, high in [calibration(anchors, Estimator.JEFFREYS).interval(u, 0.9)]
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("estimator", Estimator)
def test_expected_selected_quantile_is_that_of_simulation(estimator: Estimator) -> None:
    rng = np.random.default_rng(1)
    for procedure, pick in ((BestOfN(8), np.max), (WorstOfN(8), np.min)):
        seen = [calibration(rng.uniform(size=16), estimator).quantile(pick(rng.uniform(size=8))) for _ in range(20_000)]
        expected = calibration(np.zeros(16), estimator).expected_quantile(procedure)
        assert np.mean(seen) == pytest.approx(expected, abs=4 * np.std(seen) / np.sqrt(len(seen)))


def test_float_noise_below_the_resolution_still_ties() -> None:
    known = Calibration(np.array([1.0, 2.0, 2.0, 3.0]), estimator=Estimator.RANK, resolution=1e-3)
    assert known.quantile(2.0 + 1e-5) == known.quantile(2.0 - 1e-5) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rewards_that_are_no_numbers_are_refused_by_name(bad: float) -> None:
    with pytest.raises(InvalidValue, match="rewards: got"):
        calibration([1.0, 2.0]).quantile([0.0, bad])
    with pytest.raises(InvalidValue, match="anchors: got"):
        calibration([1.0, bad])


def test_table_knows_its_prompts_and_pools_the_rest() -> None:
    table = CalibrationTable(("a", "b"), np.array([[0.0, 1.0], [2.0, 3.0]]), Estimator.RANK)
    assert table.lookup("a").scope == "prompt"
    assert table.lookup("a").quantile(1.5) == 1.0
    assert table.lookup("b").quantile(1.5) == 0.0
    assert (table.lookup("c").scope, table.lookup("c").samples) == ("global", 4)
    assert table.lookup("c").quantile(1.5) == 0.5


def test_table_refuses_rows_without_keys_and_repeated_keys() -> None:
    with pytest.raises(InvalidValue, match="rewards"):
        CalibrationTable(("a",), np.zeros((2, 3)))
    with pytest.raises(InvalidValue, match="keys"):
        CalibrationTable(("a", "a"), np.zeros((2, 3)))


@given(st.lists(st.lists(GRID, min_size=6, max_size=6), min_size=1, max_size=5), st.sampled_from(Estimator))
def test_table_reads_many_prompts_and_rewards_at_once(rows: list[list[float]], estimator: Estimator) -> None:
    table = CalibrationTable(tuple(map(str, range(len(rows)))), np.array(rows), estimator)
    keys = [*table.keys, "unknown", table.keys[0]]
    rewards = np.linspace(-12, 12, 7 * len(keys)).reshape(len(keys), 7)
    expected = [table.lookup(key).quantile(row) for key, row in zip(keys, rewards, strict=True)]
    assert table.quantile(keys, rewards) == pytest.approx(np.array(expected))
    assert table.quantile(keys, rewards[:, 0]) == pytest.approx(np.array(expected)[:, 0])


def test_table_refuses_what_is_no_number_or_has_no_key() -> None:
    table = CalibrationTable(("a",), np.zeros((1, 3)))
    with pytest.raises(InvalidValue, match="rewards: got nan"):
        table.quantile(["a"], [[1.0, np.nan]])
    with pytest.raises(InvalidValue, match=r"rewards: got \(2, 1\), accepted: \(1, ...\)"):
        table.quantile(["a"], [[1.0], [2.0]])
    with pytest.raises(InvalidValue, match="rewards: got inf"):
        CalibrationTable(("a",), np.array([[1.0, np.inf]]))


@given(st.lists(GRID, min_size=1, max_size=60).map(np.array), st.integers(2, 30), st.sampled_from(Estimator))
def test_compression_costs_no_more_than_it_says(anchors: np.ndarray, p: int, estimator: Estimator) -> None:
    full = calibration(anchors, estimator)
    small = full.compress(p)
    assert small.anchors.size <= p
    assert small.samples == full.samples
    rewards = np.concatenate([np.linspace(-15, 15, 400), anchors, anchors - 1e-4, anchors + 1e-4])
    seen = np.abs(small.quantile(rewards) - full.quantile(rewards))
    assert seen.max() <= small.error + 1e-4  # two grid steps from an anchor is as near as a jump can be seen
    assert seen.max() >= small.error - 0.02
    assert np.all(np.diff(small.quantile(np.sort(rewards))) >= 0)


def test_compression_error_shrinks_with_anchors_and_nothing_is_extrapolated() -> None:
    full = Calibration(np.random.default_rng(0).normal(size=2000))
    small = [full.compress(p) for p in (4, 16, 64, 256)]
    errors = [each.error for each in small]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    low, high = small[0].quantile([-1e6, 1e6])
    ends = full.quantile([full.anchors[0] * full.resolution, full.anchors[-1] * full.resolution])
    assert (low, high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert np.array(small[1].interval(0.0)) == pytest.approx(np.array(full.interval(0.0)), abs=0.05)
    with pytest.raises(InvalidValue, match="anchors: got 1"):
        full.compress(1)
    with pytest.raises(InvalidValue, match="compressed already"):
        small[1].compress(4)


def test_tie_rate_counts_pairs_within_a_prompt() -> None:
    assert CalibrationTable(("a",), np.array([[1.0, 1.0, 2.0]])).tie_rate == pytest.approx(1 / 3)
    assert CalibrationTable(("a",), np.array([[1.0, 2.0, 3.0]])).tie_rate == 0
