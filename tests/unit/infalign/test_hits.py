"""Hits and detectors against closed forms, exact enumeration, and simulations in which the truth is known."""

import doctest
import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from infalign import Estimate, InvalidValue, detectors, hits, intervals
from infalign.detectors import Detector, correct_hit_at_k, correct_rate
from infalign.hits import hit_at_k, hit_curve, paired_difference, pooled_rate, wilson

ROWS = st.lists(st.booleans(), min_size=1, max_size=7)
RATES = st.lists(st.integers(0, 64).map(lambda count: count / 64), min_size=2, max_size=12)
TRIALS = 2000


def first_hits(count: int, samples: int) -> list[bool]:
    return [i < count for i in range(samples)]


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(1, 8))
def test_hit_at_k_is_the_share_of_subsets_with_a_hit(rows: list[list[bool]], k: int) -> None:
    for row, found in zip(rows, hit_at_k(rows, k), strict=True):
        if k > len(row):
            assert math.isnan(found)
        else:
            assert found == pytest.approx(np.mean([any(subset) for subset in itertools.combinations(row, k)]))


def test_a_curve_is_every_hit_at_k_and_arrays_and_lists_are_the_same() -> None:
    rows = np.random.default_rng(0).uniform(size=(20, 30)) < 0.1
    ks = [1, 5, 30, 31]
    curve = hit_curve(rows, ks)
    assert np.array_equal(
        curve, np.stack([hit_at_k([list(row) for row in rows], k) for k in ks], axis=1), equal_nan=True
    )
    assert np.array_equal(curve, hit_curve(rows.astype(int), ks), equal_nan=True)
    assert curve[:, 0] == pytest.approx(rows.mean(axis=1))
    assert np.array_equal(curve[:, 2], rows.any(axis=1))
    assert np.all(np.isnan(curve[:, 3]))


def test_no_hit_is_exactly_zero_and_rare_hits_keep_their_digits() -> None:
    rows = [first_hits(0, 1000), first_hits(1, 1000), first_hits(999, 1000)]
    curve = hit_curve(rows, [1, 500, 1000])
    assert list(curve[0]) == [0.0, 0.0, 0.0]
    assert list(curve[1]) == pytest.approx([0.001, 0.5, 1.0], rel=1e-8)
    assert list(curve[2]) == pytest.approx([0.999, 1.0, 1.0])


@pytest.mark.parametrize("chance", [0.0, 0.03, 0.4, 1.0])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_hit_at_k_is_unbiased(chance: float, k: int) -> None:
    samples = 6
    weights = binom.pmf(np.arange(samples + 1), samples, chance)
    found = hit_at_k([first_hits(count, samples) for count in range(samples + 1)], k)
    assert weights @ found == pytest.approx(1 - (1 - chance) ** k, abs=1e-12)


@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_is_that_of_scipy(samples: int, data: st.DataObject, level: float) -> None:
    count = data.draw(st.integers(0, samples))
    found, theirs = wilson(count, samples, level=level), binomtest(count, samples).proportion_ci(level, "wilson")
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high], abs=1e-9)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(count / samples)
    more = wilson(count, samples, 4, level=level)
    expected = [1 - (1 - p) ** 4 for p in (found.low, found.value, found.high)]
    assert [more.low, more.value, more.high] == pytest.approx(expected)


def test_rates_of_zero_and_one_have_an_interval() -> None:
    none, all_of_them = pooled_rate(np.zeros(100)), pooled_rate(np.ones(100))
    assert (none.value, none.low, all_of_them.value, all_of_them.high) == (0.0, 0.0, 1.0, 1.0)
    assert none.high == pytest.approx(1 - all_of_them.low) == pytest.approx(0.0379, abs=1e-4)
    assert pooled_rate(np.zeros(1000)).high < none.high


def test_prompts_that_agree_by_chance_do_not_seem_certain() -> None:
    alike = pooled_rate([0.5] * 5)
    assert alike.low < 0.4 < 0.6 < alike.high


def test_zeros_and_ones_of_many_prompts_have_the_interval_of_wilson() -> None:
    values = np.arange(20_000) % 10 == 0
    found, closed = pooled_rate(values), wilson(2000, 20_000)
    assert [found.low, found.high] == pytest.approx([closed.low, closed.high], rel=1e-3)


@given(RATES, st.sampled_from([0.5, 0.8, 0.95]))
def test_a_pooled_rate_mirrors_and_lies_in_its_interval(rates: list[float], level: float) -> None:
    found, mirror = pooled_rate(rates, level=level), pooled_rate([1 - rate for rate in rates], level=level)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert [found.low, found.high] == pytest.approx([1 - mirror.high, 1 - mirror.low], abs=1e-9)


@given(st.data(), st.integers(2, 12), st.sampled_from([0.5, 0.8, 0.95]))
def test_a_paired_difference_mirrors_and_lies_in_its_interval(data: st.DataObject, prompts: int, level: float) -> None:
    first, second = (data.draw(st.lists(st.floats(0, 1), min_size=prompts, max_size=prompts)) for _ in range(2))
    found, mirror = paired_difference(first, second, level=level), paired_difference(second, first, level=level)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert [found.low, found.high] == pytest.approx([-mirror.high, -mirror.low], abs=1e-9)
    assert found.value == pytest.approx(np.mean(np.subtract(first, second)))


def test_differences_of_zeros_and_ones_are_those_of_agresti_and_min() -> None:
    """With b pairs (1, 0) and c pairs (0, 1), it is Wald's interval with one half added to all four counts."""
    b, c, prompts = 300, 200, 10_000
    first, second = np.zeros(prompts), np.zeros(prompts)
    first[:b], second[b : b + c] = 1, 1
    total = prompts + 2
    error = math.sqrt((b + c + 1 - (b - c) ** 2 / total) / total**2)
    found = paired_difference(first, second)
    assert found.low == pytest.approx((b - c) / total - 1.960 * error, rel=1e-3)
    assert found.high == pytest.approx((b - c) / total + 1.960 * error, rel=1e-3)


def test_one_prompt_has_no_interval_and_nan_stays() -> None:
    for found in (pooled_rate([0.25]), paired_difference([0.5], [0.25])):
        assert found.value == 0.25
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    for found in (pooled_rate([0.5, math.nan, 0.1]), paired_difference([0.5, 1.0], [math.nan, 1.0])):
        assert all(math.isnan(number) for number in (found.value, found.low, found.high))


def coverage(trial: Callable[[np.random.Generator], tuple[Estimate, float]], trials: int = TRIALS) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([found.low <= truth <= found.high for found, truth in (trial(rng) for _ in range(trials))]))


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.5])
def test_wilson_covers(chance: float) -> None:
    weights = binom.pmf(np.arange(129), 128, chance)
    found = [wilson(count, 128, 4) for count in range(129)]
    covered = [estimate.low <= 1 - (1 - chance) ** 4 <= estimate.high for estimate in found]
    assert 0.93 < weights @ covered < 0.97


SHAPES = pytest.mark.parametrize(("a", "b"), [(0.3, 6.0), (2.0, 20.0), (0.5, 0.5)])


def draw_counts(rng: np.random.Generator, a: float, b: float, prompts: int = 100) -> np.ndarray:
    return rng.binomial(32, rng.beta(a, b, size=prompts))


@SHAPES
def test_pooled_rates_cover(a: float, b: float) -> None:
    """The rates of every count are known in advance, so that a trial is quick."""
    k = 4
    table = hit_at_k([first_hits(count, 32) for count in range(33)], k)
    truth = 1 - math.prod((b + i) / (a + b + i) for i in range(k))
    assert 0.93 < coverage(lambda rng: (pooled_rate(table[draw_counts(rng, a, b)]), truth)) < 0.97


@SHAPES
def test_paired_differences_cover(a: float, b: float) -> None:
    def trial(rng: np.random.Generator) -> tuple[Estimate, float]:
        chance, left = rng.beta(a, b, size=100), rng.beta(4.0, 2.0, size=100)
        first, second = rng.binomial(32, chance) / 32, rng.binomial(32, chance * left) / 32
        return paired_difference(first, second), a / (a + b) / 3

    assert 0.93 < coverage(trial) < 0.97


def test_rates_of_zero_cover_nearly_always_where_the_bootstrap_never_does() -> None:
    assert coverage(lambda rng: (pooled_rate(rng.binomial(32, 1e-5, size=50) / 32), 1e-5)) > 0.97


@SHAPES
@pytest.mark.parametrize("measured", [None, 100])
def test_corrected_rates_cover(a: float, b: float, measured: int | None) -> None:
    def trial(rng: np.random.Generator) -> tuple[Estimate, float]:
        se, sp = (rng.binomial(measured, p) / measured if measured else p for p in (0.9, 0.95))
        chance = rng.beta(a, b, size=100)
        seen = rng.binomial(32, chance * 0.9 + (1 - chance) * 0.05) / 32
        return correct_rate(pooled_rate(seen), Detector(se, sp, measured, measured)), a / (a + b)

    assert 0.93 < coverage(trial, 1000) < 0.98


@pytest.mark.parametrize("detector", [Detector(1.0, 1.0), Detector(1.0, 0.9), Detector(0.8, 1.0), Detector(0.7, 0.9)])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_correction_is_unbiased(detector: Detector, chance: float, k: int) -> None:
    """Over all outcomes of 6 samples, each with its exact probability."""
    samples = 6
    seen = chance * detector.sensitivity + (1 - chance) * (1 - detector.specificity)
    weights = binom.pmf(np.arange(samples + 1), samples, seen)
    found = correct_hit_at_k([first_hits(count, samples) for count in range(samples + 1)], k, detector)
    assert weights @ found == pytest.approx(1 - (1 - chance) ** k, abs=1e-9)


def test_a_perfect_detector_corrects_nothing() -> None:
    rows = np.random.default_rng(0).uniform(size=(30, 16)) < 0.2
    assert correct_hit_at_k(rows, 4, Detector(1.0, 1.0)) == pytest.approx(hit_at_k(rows, 4))
    observed = pooled_rate(hit_at_k(rows, 1))
    found = correct_rate(observed, Detector(1.0, 1.0))
    assert (found.value, found.low, found.high) == pytest.approx((observed.value, observed.low, observed.high))
    assert np.isnan(correct_hit_at_k([[1, 0]], 3, Detector(0.9, 0.9))).all()


def test_known_detectors_move_the_ends_as_they_move_the_value() -> None:
    """And the fewer samples they were measured on, the wider is the interval."""
    observed, sure = Estimate(0.3, 0.25, 0.4), Detector(0.9, 0.8)
    found = correct_rate(observed, sure)
    assert (found.value, found.low, found.high) == pytest.approx((0.1 / 0.7, 0.05 / 0.7, 0.2 / 0.7))
    widths = [found.high - found.low]
    for measured in (10_000, 100, 10):
        wider = correct_rate(observed, Detector(0.9, 0.8, measured, measured))
        widths.append(wider.high - wider.low)
    assert widths == sorted(widths)
    assert widths[1] == pytest.approx(widths[0], rel=0.02)


def test_corrected_rates_are_clipped_and_nan_stays() -> None:
    low, high = (
        correct_rate(Estimate(0.01, 0.0, 0.02), Detector(0.9, 0.9)),
        correct_rate(Estimate(0.97, 0.95, 0.99), Detector(0.9, 0.9)),
    )
    assert (low.value, low.low, low.high) == pytest.approx((0.0, 0.0, 0.0))
    assert (high.value, high.low, high.high) == pytest.approx((1.0, 1.0, 1.0))
    assert 0 < correct_rate(Estimate(0.07, 0.05, 0.09), Detector(0.9, 0.9, negatives=50)).high < 0.2
    single = correct_rate(Estimate(0.5, math.nan, math.nan), Detector(0.9, 0.9))
    assert single.value == pytest.approx(0.5)
    assert math.isnan(single.low)
    assert math.isnan(correct_rate(Estimate(math.nan, math.nan, math.nan), Detector(0.9, 0.9)).value)


@given(
    st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0.5, 1), st.floats(0.51, 1), st.integers(1, 200)
)
def test_corrected_rates_lie_in_their_intervals(
    rate: float, below: float, above: float, se: float, sp: float, measured: int
) -> None:
    observed = Estimate(rate, max(rate - below, 0.0), min(rate + above, 1.0))
    found = correct_rate(observed, Detector(se, sp, measured, measured))
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hit_at_k([[1, 0]], 0), "k: got 0.0, accepted: whole numbers of at least 1"),
        (lambda: hit_curve([[1, 0]], [1, 1.5]), r"k: got \[1.0, 1.5\]"),
        (lambda: hit_at_k([[1, 2]], 1), "hits: got 2.0, accepted: booleans, or zeros and ones"),
        (lambda: hit_at_k([[math.nan]], 1), "hits: got nan"),
        (lambda: hit_at_k([], 1), "hits: got 0, accepted: at least one prompt"),
        (lambda: hit_at_k([[]], 1), r"hits: got \(0,\)"),
        (lambda: hit_at_k([[[1]]], 1), r"hits: got \(1, 1\)"),
        (lambda: wilson(3, 2), "hits: got 3, accepted: a whole number from 0 to 2"),
        (lambda: wilson(0, 0), "samples: got 0"),
        (lambda: wilson(0, 1, 0), "k: got 0"),
        (lambda: wilson(0, 1, level=1.0), "level: got 1.0, accepted: a number between 0 and 1"),
        (lambda: pooled_rate([0.5, 1.5]), "rates: got 1.5, accepted: numbers from 0 to 1"),
        (lambda: pooled_rate([]), r"rates: got \(0,\)"),
        (lambda: pooled_rate([0.5], level=95), "level: got 95"),
        (lambda: paired_difference([0.5], [-0.5]), "second: got -0.5"),
        (lambda: paired_difference([0.5], [0.5, 0.5]), "second: got '2 prompts', accepted: 1"),
        (lambda: Detector(1.2, 0.5), "sensitivity: got 1.2, accepted: a number from 0 to 1"),
        (lambda: Detector(0.9, math.nan), "specificity: got nan"),
        (lambda: Detector(0.4, 0.6), "sensitivity: got 0.4, accepted: more than 1 - specificity = 0.4"),
        (lambda: Detector(0.9, 0.9, positives=0), "positives: got 0"),
        (lambda: Detector(0.9, 0.9, negatives=-1), "negatives: got -1"),
        (lambda: correct_rate(Estimate(1.5, 1.0, 2.0), Detector(0.9, 0.9)), "rate: got 1.5"),
        (lambda: correct_hit_at_k([[1, 0]], 0, Detector(0.9, 0.9)), "k: got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        call()


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hit_curve([first_hits(0, 3), first_hits(3, 3)], [1, 2, 3, 4])
        correct_hit_at_k([first_hits(0, 3), first_hits(3, 3)], 3, Detector(0.9, 0.9))
        pooled_rate([0.0])
        paired_difference([0.0], [0.0])


@pytest.mark.parametrize("module", [hits, intervals, detectors], ids=lambda module: module.__name__)
def test_the_examples_are_right(module: object) -> None:
    assert doctest.testmod(module)[0] == 0  # type: ignore[arg-type]
