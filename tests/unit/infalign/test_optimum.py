"""The optimal transformation against its own equation, against mirror ascent, and each solver against the other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign import (
    BestOfN,
    BestOfPoisson,
    Identity,
    InvalidValue,
    Mixture,
    NotConverged,
    Optimal,
    Policy,
    Procedure,
    Standard,
    WorstOfN,
    beta_for_kl,
    optimal,
    optimum,
)
from infalign.collocation import solve_by_collocation
from infalign.quadrature import graded_mesh

PROCEDURES: list[Procedure] = [
    Standard(),
    *(kind(n) for kind in (BestOfN, WorstOfN) for n in (1, 2, 3, 8, 32)),
    BestOfPoisson(0.5),
    BestOfPoisson(7),
]


def penalised(procedure: Procedure, log_density: np.ndarray, beta: float) -> tuple[float, np.ndarray, float]:
    """W − β KL of a policy given on the mesh, the gradient Φ_F − β log f of that, and W."""
    mesh = graded_mesh()
    density = np.exp(log_density)
    density /= mesh.integral(density)
    policy = np.clip(1 - mesh.cumulative(density), 0, 1)
    g = procedure.density(1 - mesh.nodes)
    wins = 1 - mesh.integral(procedure.cumulative(policy) * g)
    logs = np.log(np.maximum(density, 1e-300))
    phi = -mesh.cumulative(procedure.density(policy) * g)
    return wins - beta * mesh.integral(density * logs), phi - beta * logs, wins


def mirror_ascent(procedure: Procedure, beta: float) -> float:
    """Win rate at the maximum of W − β KL, by multiplicative steps that are halved whenever they fail to climb."""
    log_density = np.zeros_like(graded_mesh().nodes)
    step = 0.5 / beta
    value, gradient, wins = penalised(procedure, log_density, beta)
    for _ in range(20_000):
        trial = log_density + step * gradient
        trial -= np.log(graded_mesh().integral(np.exp(trial)))
        better, slope, reached = penalised(procedure, trial, beta)
        if better < value:
            step /= 2
            if step < 1e-9 / beta:
                break
        else:
            climbed = better - value
            log_density, value, gradient, wins = trial, better, slope, reached
            if climbed < 1e-13:
                break
    return wins


@pytest.mark.parametrize("kl", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(
    "procedure", [BestOfN(2), BestOfN(5), BestOfN(16), WorstOfN(2), WorstOfN(6), BestOfPoisson(4)], ids=str
)
def test_mirror_ascent_finds_the_same_win_rate(procedure: Procedure, kl: float) -> None:
    phi = optimal(procedure, kl=kl)
    assert Policy.of(phi, phi.beta).win_rate(procedure) == pytest.approx(mirror_ascent(procedure, phi.beta), abs=1e-5)


@pytest.mark.parametrize("kl", [0.05, 0.7, 1.5])
@pytest.mark.parametrize("procedure", [BestOfN(3), BestOfN(12), WorstOfN(3), WorstOfN(5)], ids=str)
def test_scaling_and_collocation_agree(procedure: BestOfN | WorstOfN, kl: float) -> None:
    exact = optimal(procedure, kl=kl)
    mixture = Mixture.of(procedure)
    with np.errstate(all="ignore"):
        solved = optimum._check_solution(mixture, solve_by_collocation(mixture, kl, None))
    assert solved.beta == pytest.approx(exact.beta, rel=1e-4)
    by_beta = Policy.of(exact, exact.beta).win_rate(procedure)
    assert Policy.of(solved, solved.beta).win_rate(procedure) == pytest.approx(by_beta, abs=1e-6)


@pytest.mark.parametrize("kl", [1e-3, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_its_policy_is_where_it_was_asked_to_be_and_solves_the_equation(procedure: Procedure, kl: float) -> None:
    phi = optimal(procedure, kl=kl)
    mesh = graded_mesh()
    policy = Policy.of(phi, phi.beta)
    assert policy.kl == pytest.approx(kl, abs=1e-6)
    reached = np.clip(1 - policy.survival, 0, 1)
    right = mesh.cumulative(procedure.density(reached) * procedure.density(1 - mesh.nodes))
    assert phi.gap(mesh.nodes) == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_it_increases_from_below_to_zero(procedure: Procedure) -> None:
    phi = optimal(procedure, kl=0.5)
    u = np.linspace(0, 1, 2001)
    assert float(phi(1.0)) == 0
    assert np.all(phi.derivative(u[1:-1]) > 0)
    assert np.all(np.diff(phi(u)) > -1e-14)
    assert phi.span == pytest.approx(-float(phi(0.0)))


@pytest.mark.parametrize("procedure", [BestOfN(4), WorstOfN(4), BestOfPoisson(3)], ids=str)
def test_its_derivative_is_the_slope(procedure: Procedure) -> None:
    phi, u, step = optimal(procedure, kl=0.5), np.linspace(0.05, 0.95, 19), 1e-5
    assert phi.derivative(u) == pytest.approx((phi(u + step) - phi(u - step)) / (2 * step), rel=1e-4, abs=1e-7)


def test_for_one_draw_it_is_the_identity() -> None:
    u = np.linspace(0, 1, 11)
    for procedure in (Standard(), BestOfN(1), WorstOfN(1)):
        phi = optimal(procedure, kl=0.5)
        assert phi(u) == pytest.approx(u - 1, abs=1e-9)
        assert phi.beta == pytest.approx(beta_for_kl(Identity(), 0.5))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([BestOfN, WorstOfN]), st.integers(2, 24), st.floats(0.02, 2.0))
def test_asked_by_beta_it_is_the_one_asked_by_kl(kind: type[BestOfN] | type[WorstOfN], n: int, kl: float) -> None:
    by_kl = optimal(kind(n), kl=kl)
    by_beta = optimal(kind(n), beta=by_kl.beta)
    assert by_beta.kl == pytest.approx(kl, rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.floats(0.05, 1.5), st.integers(0, 2**32 - 1))
def test_no_other_policy_at_its_kl_wins_more(n: int, kl: float, seed: int) -> None:
    """Random smooth perturbations of the optimum, tilted back to its KL."""
    rng = np.random.default_rng(seed)
    for procedure in (BestOfN(n), WorstOfN(n)):
        phi = optimal(procedure, kl=kl)
        best = Policy.of(phi, phi.beta).win_rate(procedure)
        bumps = [(rng.normal(), rng.uniform(), rng.uniform(0.05, 0.5)) for _ in range(3)]

        class Bumped(Identity):
            def gap(self, v: object, phi: Optimal = phi, bumps: list = bumps) -> np.ndarray:
                v = np.asarray(v)
                change = sum(h * phi.span * 0.2 * np.exp(-(((v - at) / wide) ** 2)) for h, at, wide in bumps)
                return phi.gap(v) + change

        other = Bumped()
        assert Policy.of(other, beta_for_kl(other, kl)).win_rate(procedure) <= best + 1e-9


def test_plain_iteration_cycles_where_this_converges() -> None:
    procedure, mesh = BestOfN(8), graded_mesh()
    beta = optimal(procedure, kl=0.5).beta
    g, gap, seen = procedure.density(1 - mesh.nodes), mesh.nodes.copy(), []
    for _ in range(200):
        mass = np.exp(-gap / beta)
        policy = np.clip(1 - mesh.cumulative(mass) / mesh.integral(mass), 0, 1)
        gap = mesh.cumulative(procedure.density(policy) * g)
        seen.append(1 - mesh.integral(procedure.cumulative(policy) * g))
    assert abs(seen[-1] - seen[-2]) > 0.01
    assert seen[-1] == pytest.approx(seen[-3], abs=1e-9)


@pytest.mark.parametrize("procedure", [BestOfN(4), WorstOfN(4), BestOfPoisson(3)], ids=str)
def test_extreme_penalties_are_safe(procedure: Procedure) -> None:
    weak, strong = optimal(procedure, beta=1e6), optimal(procedure, beta=1e-3)
    assert Policy.of(weak, 1e6).win_rate(procedure) == pytest.approx(0.5, abs=1e-5)
    assert Policy.of(strong, 1e-3).win_rate(procedure) > 0.99


def test_even_a_beta_of_1e_10() -> None:
    for procedure in (Standard(), BestOfN(4), WorstOfN(4)):
        phi = optimal(procedure, beta=1e-10)
        assert 0.999999 < Policy.of(phi, phi.beta).win_rate(procedure) <= 1
        assert math.isfinite(phi.log_partition(phi.beta))


def test_what_floating_point_cannot_hold_is_refused_not_returned() -> None:
    with pytest.raises(NotConverged, match="worst-of-128 at 5 nats"):
        optimal(WorstOfN(128), kl=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "kl: got None, accepted: a KL or a beta, exactly one"),
        ({"kl": 1.0, "beta": 1.0}, "exactly one"),
        ({"kl": 0.0}, "kl: got 0.0"),
        ({"kl": 11.0}, "kl: got 11.0"),
        ({"kl": math.nan}, "kl: got nan"),
        ({"beta": 0.0}, "beta: got 0.0"),
        ({"beta": -1.0}, "beta: got -1.0"),
        ({"beta": math.nan}, "beta: got nan"),
    ],
)
def test_bad_goals_are_refused_by_name(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        optimal(BestOfN(4), **arguments)
