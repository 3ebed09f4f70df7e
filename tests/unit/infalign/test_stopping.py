"""Stopping rules: closed forms against simulation, and against what is optimal."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution

from infalign import BestOfN, Calibration, Cost, Fixed, InvalidValue, Standard, StoppingRule, Target, WorstOfN
from infalign.stopping import Expectation

RULES: list[StoppingRule] = [
    rule
    for kind, quantile in ((BestOfN(12), 0.9), (WorstOfN(12), 0.1))
    for rule in (
        Fixed(kind),
        Target(kind, quantile),
        Target(kind, quantile, "credible", 0.8),
        Cost(kind, 0.004),
        Cost(kind, 0.1),
    )
]


def simulate(rule: StoppingRule, samples: int, prompts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws and true quantile of the selected candidate, with fresh anchors for every prompt."""
    draws, quantiles = np.empty(prompts), np.empty(prompts)
    for i in range(prompts):
        calibration = Calibration(rng.uniform(size=samples), resolution=1e-12)
        drawn: list[float] = []
        while not rule.stops(drawn, calibration):
            drawn.append(rng.uniform())
        draws[i] = len(drawn)
        quantiles[i] = max(drawn) if isinstance(rule.procedure, BestOfN) else min(drawn)
    return draws, quantiles


@pytest.mark.parametrize("samples", [6, 40])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_closed_forms_are_those_of_simulation(rule: StoppingRule, samples: int) -> None:
    draws, quantiles = simulate(rule, samples, 1500, np.random.default_rng(0))
    expected = rule.expectation(samples)
    assert draws.mean() == pytest.approx(expected.draws, abs=4.5 * draws.std() / math.sqrt(1500) + 1e-9)
    assert quantiles.mean() == pytest.approx(expected.quantile, abs=4.5 * quantiles.std() / math.sqrt(1500))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_many_anchors_are_as_good_as_exact_calibration(rule: StoppingRule) -> None:
    samples = 2000 if isinstance(rule, Cost) else 200_000
    assert rule.expectation(samples) == pytest.approx(rule.expectation(), rel=0.01)


@given(st.integers(2, 60))
def test_a_threshold_reaches_best_of_m_with_half_the_draws(m: int) -> None:
    """Uncapped, the mean quantile M/(M + 1) costs (M + 1)/2 draws in place of M."""
    rule = Target(BestOfN(5000), (m - 1) / (m + 1))
    assert rule.expectation() == pytest.approx(Expectation((m + 1) / 2, m / (m + 1)), abs=1e-6)


@given(st.floats(0.01, 0.99), st.integers(1, 40))
def test_worst_of_n_mirrors_best_of_n(quantile: float, n: int) -> None:
    for samples in (None, 16):
        best = Target(BestOfN(n), quantile).expectation(samples)
        worst = Target(WorstOfN(n), 1 - quantile).expectation(samples)
        assert worst == pytest.approx(Expectation(best.draws, 1 - best.quantile), abs=0.08 if samples else 1e-12)


@given(st.floats(0.001, 0.4), st.integers(1, 64))
def test_the_cost_threshold_is_the_best_of_all_thresholds(cost: float, n: int) -> None:
    def gain(rule: StoppingRule) -> float:
        reached = rule.expectation()
        return reached.quantile - cost * reached.draws

    best = gain(Cost(BestOfN(n), cost))
    assert all(gain(Target(BestOfN(n), q)) <= best + 1e-12 for q in np.linspace(0.01, 0.99, 50))
    assert gain(Fixed(BestOfN(n))) <= best + 1e-12


@given(st.floats(0.001, 0.4), st.integers(1, 64), st.integers(1, 64))
def test_with_few_anchors_the_cost_rule_is_the_best_of_all_ranks(cost: float, n: int, samples: int) -> None:
    def gain(rule: StoppingRule) -> float:
        reached = rule.expectation(samples)
        return reached.quantile - cost * reached.draws

    best = gain(Cost(BestOfN(n), cost))
    points = [(rank + 0.5) / (samples + 1) for rank in range(samples + 1)]
    assert all(gain(Target(BestOfN(n), q)) <= best + 1e-12 for q in points)
    assert gain(Fixed(BestOfN(n))) <= best + 1e-12


def simulate_waves(
    rule: StoppingRule, samples: int | None, waves: tuple[int, ...], prompts: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws and true quantile of the selected candidate of whole waves, with fresh anchors for every prompt."""
    draws, quantiles = np.empty(prompts), np.empty(prompts)
    best = isinstance(rule.procedure, BestOfN)
    for i in range(prompts):
        calibration = Calibration(rng.uniform(size=samples or 1), resolution=1e-12)
        drawn: list[float] = []
        for size in waves:
            drawn += list(rng.uniform(size=size))
            goodness = max(drawn) if best else 1 - min(drawn)
            if rule.reaches(drawn, calibration) if samples else goodness >= rule.threshold:
                break
        draws[i], quantiles[i] = len(drawn), max(drawn) if best else min(drawn)
    return draws, quantiles


@pytest.mark.parametrize("waves", [(1, 2, 4, 5), (5, 5, 2), (12,)], ids=str)
@pytest.mark.parametrize("samples", [None, 6, 40])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_closed_forms_of_waves_are_those_of_simulation(
    rule: StoppingRule, samples: int | None, waves: tuple[int, ...]
) -> None:
    draws, quantiles = simulate_waves(rule, samples, waves, 1000, np.random.default_rng(1))
    expected = rule.expectation(samples, waves)
    assert draws.mean() == pytest.approx(expected.draws, abs=4.5 * draws.std() / math.sqrt(1000) + 1e-9)
    assert quantiles.mean() == pytest.approx(expected.quantile, abs=4.5 * quantiles.std() / math.sqrt(1000))


@given(st.floats(0.01, 0.99), st.integers(1, 40), st.integers(1, 40), st.sampled_from([None, 16]))
def test_whole_waves_draw_more_and_select_better(quantile: float, n: int, least: int, samples: int | None) -> None:
    rule = Target(BestOfN(n), quantile)
    one_by_one, waves = rule.expectation(samples), rule.waves(samples, least=least)
    in_waves = rule.expectation(samples, waves)
    assert sum(waves) == n
    assert max(waves) >= min(least, n)
    assert in_waves.draws >= one_by_one.draws - 1e-9
    assert in_waves.quantile >= one_by_one.quantile - 1e-9
    assert rule.expectation(samples, [n]) == pytest.approx(Fixed(BestOfN(n)).expectation())


@given(st.floats(0.01, 0.99), st.integers(1, 64))
def test_a_wave_is_the_smallest_with_an_even_chance(quantile: float, n: int) -> None:
    size, p = Target(BestOfN(n), quantile).waves()[0], 1 - quantile
    assert size == n or 1 - (1 - p) ** size >= 0.5 - 1e-9
    assert size == 1 or 1 - (1 - p) ** (size - 1) < 0.5 + 1e-9


def test_waves_follow_the_rank_law_of_the_policy() -> None:
    better = np.concatenate([np.zeros(16), np.full(17, 1 / 17)])  # never below the median
    best, worst = Target(BestOfN(64), 0.9), Target(WorstOfN(64), 0.1)
    assert best.waves(32)[0] == 8  # 3 ranks of 33, then 3 of 17
    assert best.waves(32, better)[0] == 4
    assert worst.waves(32, better)[0] == 64
    assert worst.waves(32, better[::-1])[0] == 4
    assert best.waves(3200, better)[0] == pytest.approx(4, abs=1)  # a law of fewer anchors is read between its ranks
    assert Target(BestOfN(64), 0.995).waves(32) == (64,)  # no rank among 32 is that good
    assert Fixed(BestOfN(5)).waves(32) == (5,)


def test_waves_that_do_not_add_up_are_refused() -> None:
    for waves in ([3, 3], [5, 0], []):
        with pytest.raises(InvalidValue, match=r"waves: got .*, accepted: sizes of at least 1 that add up to 5"):
            Fixed(BestOfN(5)).expectation(waves=waves)


@pytest.mark.parametrize("rule", [Target(BestOfN(64), 0.8), Target(WorstOfN(64), 0.2, "credible", 0.8)], ids=str)
def test_the_probability_of_a_miss_bounds_how_often_the_target_is_missed(rule: Target) -> None:
    rng, missed, said = np.random.default_rng(2), [], []
    for _ in range(2000):
        calibration = Calibration(rng.uniform(size=24), resolution=1e-12)
        drawn: list[float] = []
        while not rule.stops(drawn, calibration):
            drawn.append(rng.uniform())
        best = isinstance(rule.procedure, BestOfN)
        selected = max(drawn) if best else min(drawn)
        missed.append(selected < 0.8 if best else selected > 0.2)
        said.append(rule.miss_probability(selected, calibration))
    error = 3 * math.sqrt(np.mean(missed) * (1 - np.mean(missed)) / 2000)
    assert np.mean(missed) <= np.mean(said) + error
    assert np.mean(missed) == pytest.approx(np.mean(said), abs=0.1)


def test_the_quantile_at_which_a_rule_stops() -> None:
    calibration = Calibration(np.arange(32.0))
    assert Target(BestOfN(8), 0.9).stop_quantile(calibration) == pytest.approx(30.5 / 33)
    assert Target(WorstOfN(8), 0.1).stop_quantile(calibration) == pytest.approx(2.5 / 33)
    assert Target(BestOfN(8), 0.995).stop_quantile(calibration) is None


def test_credible_target_waits_for_the_bound() -> None:
    calibration = Calibration(np.arange(64.0))
    point, credible = Target(BestOfN(99), 0.9), Target(BestOfN(99), 0.9, "credible")
    for reward in np.arange(-0.5, 64.5):
        rank = float(calibration.rank(reward))
        assert point.stops([reward], calibration) == (float(calibration.quantile(reward)) >= 0.9)
        assert credible.stops([reward], calibration) == (
            beta_distribution(rank + 0.5, 64 - rank + 0.5).ppf(0.05) >= 0.9
        )
    assert credible.rank_threshold(64) > point.rank_threshold(64)


def test_few_anchors_may_never_tell() -> None:
    credible = Target(BestOfN(8), 0.99, "credible")
    assert credible.rank_threshold(16) == 17
    assert credible.expectation(16) == pytest.approx(Fixed(BestOfN(8)).expectation())


def test_the_cap_and_no_draw_at_all() -> None:
    calibration, rule = Calibration(np.zeros(4)), Target(BestOfN(3), 0.99)
    assert not rule.stops([], calibration)
    assert not rule.stops([0.0, 0.0], calibration)
    assert rule.stops([0.0, 0.0, 0.0], calibration)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(Standard()), "procedure: got 'standard', accepted: best-of-N or worst-of-N"),
        (lambda: Target(BestOfN(4), 1.0), "quantile: got 1.0"),
        (lambda: Target(BestOfN(4), 0.5, "median"), "bound: got 'median', accepted: point or credible"),
        (lambda: Target(BestOfN(4), 0.5, "credible", 0.0), "level: got 0.0"),
        (lambda: Cost(BestOfN(4), 0.5), "cost: got 0.5"),
        (lambda: Cost(BestOfN(4), math.nan), "cost: got nan"),
    ],
)
def test_bad_rules_are_refused_by_name(make: object, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        make()
