"""The frontier against closed forms, a table of reference numbers, and Monte Carlo duels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from infalign import (
    AnchoredPolicies,
    BestOfN,
    BestOfPoisson,
    Estimator,
    Exponential,
    Gaussian,
    Identity,
    InvalidValue,
    Log,
    Policy,
    Procedure,
    Standard,
    Transformation,
    WorstOfN,
    beta_for_kl,
    parse_procedure,
    point,
)
from infalign.policies import simulate_pieces

REFERENCE = json.loads((Path(__file__).parent / "frontier.json").read_text())
PROCEDURES = [Standard(), BestOfN(2), BestOfN(7), WorstOfN(2), WorstOfN(7), BestOfPoisson(4)]
KLS = st.floats(0.01, 4)


@pytest.mark.parametrize("row", REFERENCE["rows"], ids=lambda row: "{transformation}-{procedure}-{kl}".format(**row))
def test_reference_numbers(row: dict) -> None:
    found = point(row["transformation"], parse_procedure(row["procedure"]), kl=row["kl"])
    assert found.win_rate == pytest.approx(row["win_rate"], abs=REFERENCE["tolerance"])
    assert found.kl == pytest.approx(row["kl"], abs=1e-6)


@given(st.integers(1, 64), KLS)
def test_log_is_distillation_and_wins_alike_under_every_best_of_n(n: int, target: float) -> None:
    beta = beta_for_kl(Log(), target)
    m = 1 + 1 / beta
    assert Policy.of(Log(), beta).win_rate(BestOfN(n)) == pytest.approx(m / (m + 1), abs=1e-9)
    assert math.log(m) - (m - 1) / m == pytest.approx(target, abs=1e-9)


@given(KLS)
def test_identity_under_standard_decoding_has_a_closed_form(target: float) -> None:
    beta = beta_for_kl(Identity(), target)
    assert Policy.of(Identity(), beta).win_rate(Standard()) == pytest.approx(
        1 / -math.expm1(-1 / beta) - beta, abs=1e-9
    )


@given(KLS)
def test_uncalibrated_gaussian_under_standard_decoding_has_a_closed_form(target: float) -> None:
    beta = beta_for_kl(Gaussian(), target)
    assert beta == pytest.approx(1 / math.sqrt(2 * target))
    assert Policy.of(Gaussian(), beta).win_rate(Standard()) == pytest.approx(ndtr(math.sqrt(target)), abs=1e-9)


@given(KLS)
def test_gaussian_policy_is_the_shifted_reference(target: float) -> None:
    beta = beta_for_kl(Gaussian(), target)
    draws = np.random.default_rng(0).normal(size=(2, 4000, 4))
    wins = np.mean((draws[0] + 1 / beta).max(axis=1) > draws[1].max(axis=1))
    assert wins == pytest.approx(Policy.of(Gaussian(), beta).win_rate(BestOfN(4)), abs=0.03)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
@pytest.mark.parametrize("phi", [Identity(), Log(), Exponential(10), Exponential(-10), Gaussian()], ids=str)
def test_the_reference_wins_half_and_nobody_beats_the_optimum(phi: Transformation, procedure: Procedure) -> None:
    assert Policy.of(phi, 1e9).win_rate(procedure) == pytest.approx(0.5, abs=1e-7)
    for target in (0.2, 0.9):
        best = point("optimal", procedure, kl=target).win_rate
        assert 0.5 < Policy.of(phi, beta_for_kl(phi, target)).win_rate(procedure) <= best + 1e-9


class Reversed(Transformation):
    """Φ(1 − u), decreasing: what Φ is for the negated reward."""

    def __init__(self, inner: Transformation) -> None:
        self.inner = inner

    def __call__(self, u: object) -> np.ndarray:
        return self.inner(1 - np.asarray(u))

    def derivative(self, u: object) -> np.ndarray:
        return -self.inner.derivative(1 - np.asarray(u))

    def gap(self, v: object) -> np.ndarray:
        return self.inner(0.0) - self.inner(v)


@given(st.floats(-20, 20).filter(lambda t: abs(t) > 0.5), st.integers(1, 12), st.floats(0.02, 5))
def test_best_and_worst_of_n_mirror_each_other_under_negated_reward(t: float, n: int, beta: float) -> None:
    phi = Exponential(t)
    assert Policy.of(Reversed(phi), beta).kl == pytest.approx(Policy.of(phi, beta).kl, abs=1e-9)
    for one, other in ((BestOfN(n), WorstOfN(n)), (WorstOfN(n), BestOfN(n))):
        mirrored = 1 - Policy.of(Reversed(phi), beta).win_rate(other)
        assert Policy.of(phi, beta).win_rate(one) == pytest.approx(mirrored, abs=1e-9)


def duel(phi: Transformation, beta: float, procedure: BestOfN | WorstOfN, rng: np.random.Generator) -> float:
    """Share of won duels, the policy's quantiles drawn by inverting its tabulated distribution function."""
    u = np.linspace(0, 1, 20_001)
    density = np.exp(phi(u) / beta - np.max(phi(u[1:]) / beta))
    table = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    ours = np.interp(rng.uniform(size=(40_000, procedure.n)), table / table[-1], u)
    theirs = rng.uniform(size=ours.shape)
    pick = np.max if isinstance(procedure, BestOfN) else np.min
    return float(np.mean(pick(ours, axis=1) > pick(theirs, axis=1)))


@pytest.mark.parametrize("procedure", [BestOfN(3), BestOfN(6), WorstOfN(3), WorstOfN(6)], ids=str)
@pytest.mark.parametrize("phi", [Identity(), Exponential(8), Exponential(-8)], ids=str)
def test_monte_carlo_duels_agree(phi: Transformation, procedure: BestOfN | WorstOfN) -> None:
    for target in (0.3, 1.3):
        beta = beta_for_kl(phi, target)
        expected = Policy.of(phi, beta).win_rate(procedure)
        error = math.sqrt(expected * (1 - expected) / 40_000)
        assert duel(phi, beta, procedure, np.random.default_rng(7)) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("t", [100.0, -100.0, 500.0, -500.0])
@pytest.mark.parametrize("beta", [1e-10, 1.0, 1e10])
def test_sharp_transformations_are_safe(t: float, beta: float) -> None:
    policy = Policy.of(Exponential(t), beta)
    assert math.isfinite(policy.kl)
    assert 0.5 - 1e-9 <= policy.win_rate(BestOfN(4)) <= 1 + 1e-9
    assert np.all(np.isfinite(policy.density))


def test_penalties_that_floats_cannot_hold_are_refused() -> None:
    with pytest.raises(InvalidValue, match="beta: got 1e-200"):
        Policy.of(Identity(), 1e-200)
    with pytest.raises(InvalidValue, match=r"kl: got 10, accepted: less for exp\(-900\)"):
        beta_for_kl(Exponential(-900), 10)


@pytest.mark.parametrize(("samples", "expected"), [(8, 0.871), (16, 0.896), (32, 0.914), (100, 0.928)])
def test_finite_k_costs_what_was_found(samples: int, expected: float) -> None:
    found = point("exp(10)", BestOfN(4), kl=1.0, anchors=samples)
    assert found.win_rate == pytest.approx(expected, abs=4 * found.win_rate_error + 5e-4)
    assert found.kl == pytest.approx(1.0, abs=1e-6)


def test_many_anchors_approach_exact_calibration() -> None:
    exact = point("exp(5)", BestOfN(4), kl=0.5).win_rate
    lost = [exact - point("exp(5)", BestOfN(4), kl=0.5, anchors=k).win_rate for k in (8, 32, 128, 1000)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-3


@pytest.mark.parametrize("procedure", [Standard(), BestOfN(3), WorstOfN(5)], ids=str)
def test_anchored_policies_win_as_often_as_simulated_ones(procedure: BestOfN) -> None:
    rng = np.random.default_rng(3)
    policies = AnchoredPolicies.of(Exponential(5), 0.3, simulate_pieces(12, prompts=3, seed=5), Estimator.JEFFREYS)
    for pieces, density, expected in zip(policies.pieces, policies.density, policies.win_rate(procedure), strict=True):
        ends = np.concatenate([[0], np.cumsum(pieces)])
        ours = np.interp(
            rng.uniform(size=(40_000, procedure.n)), np.concatenate([[0], np.cumsum(pieces * density)]), ends
        )
        theirs = rng.uniform(size=ours.shape)
        pick = np.min if isinstance(procedure, WorstOfN) else np.max
        assert np.mean(pick(ours, axis=1) > pick(theirs, axis=1)) == pytest.approx(expected, abs=0.01)


def test_anchors_bound_the_kl() -> None:
    with pytest.raises(InvalidValue, match=r"kl: got 3.0, accepted: below 2.\d+ nats for log with 8 anchors"):
        point("log", BestOfN(4), kl=3.0, anchors=8)
    mean_limit = np.mean(-np.log(simulate_pieces(8)[:, -1]))
    assert mean_limit == pytest.approx(sum(1 / k for k in range(1, 9)), abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "kl: got None, accepted: a KL or a beta"),
        ({"kl": 1.0, "beta": 0.1}, "exactly one"),
        ({"kl": 0.0}, "kl: got 0.0"),
        ({"beta": -1.0}, "beta: got -1.0"),
        ({"kl": 1.0, "anchors": 0}, "anchors: got 0"),
    ],
)
def test_bad_points_are_refused_by_name(arguments: dict, message: str) -> None:
    for transformation in ("identity", "optimal"):
        with pytest.raises(InvalidValue, match=message):
            point(transformation, BestOfN(4), **arguments)
