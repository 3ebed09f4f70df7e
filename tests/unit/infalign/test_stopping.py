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
