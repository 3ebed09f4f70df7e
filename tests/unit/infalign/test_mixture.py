"""Mixtures: their written form, and their optimum against mirror ascent, other policies and its proof."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from infalign import (
    Alignment,
    BestOfN,
    BestOfPoisson,
    Identity,
    InvalidValue,
    Mixture,
    NotConverged,
    Policy,
    Procedure,
    Standard,
    WorstOfN,
    beta_for_kl,
    optimal,
    parse_decoding,
    parse_mixture,
    parse_procedure,
    point,
)
from infalign.quadrature import graded_mesh

PROCEDURES: list[Procedure] = [
    Standard(),
    *(kind(n) for kind in (BestOfN, WorstOfN) for n in (2, 4, 16, 32)),
    BestOfPoisson(0.5),
    BestOfPoisson(7),
    BestOfPoisson(40),
]
MIXTURES = [
    "standard+best-of-4+worst-of-4",
    "best-of-4+worst-of-4",
    "best-of-32+worst-of-32",
    "best-of-2+20*worst-of-32",
    "standard+worst-of-8",
    "worst-of-2+worst-of-16",
    "3*standard+best-of-poisson(7)+2*worst-of-3",
]
ANY = st.lists(st.tuples(st.sampled_from(PROCEDURES), st.sampled_from([1, 2, 3, 20, 500])), min_size=1, max_size=4).map(
    lambda parts: Mixture(*(tuple(column) for column in zip(*parts, strict=True)))
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("standard+best-of-4+worst-of-4", "standard+best-of-4+worst-of-4"),
        ("worst-of-4+best-of-4+standard", "standard+best-of-4+worst-of-4"),
        ("2*best-of-4+worst-of-4", "2*best-of-4+worst-of-4"),
        ("4*best-of-4+2*worst-of-4", "2*best-of-4+worst-of-4"),
        ("0.7*standard+0.3*best-of-4", "7*standard+3*best-of-4"),
        ("best-of-4+best-of-4+worst-of-4", "2*best-of-4+worst-of-4"),
        ("3*best-of-4", "best-of-4"),
        ("best-of-4", "best-of-4"),
        ("standard+best-of-poisson(1e+1)", "standard+best-of-poisson(10)"),
        ("worst-of-2+best-of-8+best-of-2", "best-of-2+worst-of-2+best-of-8"),
    ],
)
def test_the_normal_spelling_is_unique(text: str, normal: str) -> None:
    assert str(parse_mixture(text)) == normal
    assert parse_mixture(normal) == parse_mixture(text)


@given(ANY)
def test_the_normal_spelling_comes_back(mixture: Mixture) -> None:
    assert parse_mixture(str(mixture)) == mixture
    assert sum(mixture.shares) == pytest.approx(1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "standard+",
        "+standard",
        "standard+best",
        "*best-of-4",
        "2*",
        "-1*best-of-4+standard",
        "1e3*best-of-4",
        "2*3*best-of-4",
        "0*best-of-4+standard",
        "1234567*best-of-4+standard",
        "0.000001*best-of-4+standard",
        "standard + best-of-4",
        "standard+controlled-4x16",
        "nan*standard",
    ],
)
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_mixture(text)
    assert "\n" not in str(caught.value)


def test_where_one_procedure_is_served_a_mixture_is_refused() -> None:
    for parse in (parse_procedure, parse_decoding):
        with pytest.raises(InvalidValue, match="a mixture is for alignment alone"):
            parse("standard+best-of-4")


def test_a_bundle_records_what_its_policy_was_aligned_for() -> None:
    record = Alignment(procedure="standard+best-of-4", transformation="optimal", beta=0.3, measured={})
    assert record.procedure == "standard+best-of-4"
    with pytest.raises(ValueError, match="procedure"):
        Alignment(procedure="standard+nothing", transformation="optimal", beta=0.3, measured={})


@pytest.mark.parametrize(("procedures", "weights"), [((), ()), ((Standard(),), (1, 2)), ((Standard(),), (0,))])
def test_bad_weights_are_refused_by_name(procedures: tuple[Procedure, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(InvalidValue, match="weights: got"):
        Mixture(procedures, weights)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_a_mixture_of_one_is_that_procedure(procedure: Procedure) -> None:
    alone, mixed = optimal(procedure, kl=0.5), optimal(Mixture((procedure,), (3,)), kl=0.5)
    assert mixed == alone
    u = np.linspace(0, 1, 101)
    assert np.array_equal(mixed(u), alone(u))
    assert point("optimal", Mixture((procedure,), (1,)), kl=0.5) == point("optimal", procedure, kl=0.5)


@pytest.mark.parametrize("kl", [0.05, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("text", MIXTURES)
def test_the_optimum_is_where_it_was_asked_to_be_and_solves_the_equation(text: str, kl: float) -> None:
    mixture = parse_mixture(text)
    phi, mesh = optimal(mixture, kl=kl), graded_mesh()
    policy = Policy.of(phi, phi.beta)
    assert policy.kl == pytest.approx(kl, abs=1e-5)
    reached = np.clip(1 - policy.survival, 0, 1)
    assert phi.gap(mesh.nodes) == pytest.approx(mesh.cumulative(mixture.slope(reached, 1 - mesh.nodes)), abs=1e-5)
    assert optimal(mixture, beta=phi.beta).kl == pytest.approx(kl, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(ANY, st.sampled_from([0.05, 0.3, 1.0, 3.0]))
def test_random_mixtures_are_solved(mixture: Mixture, kl: float) -> None:
    phi = optimal(mixture, kl=kl)
    assert Policy.of(phi, phi.beta).kl == pytest.approx(kl, abs=1e-5)


def test_what_is_not_solved_is_refused_in_one_line() -> None:
    with pytest.raises(NotConverged, match=r"no solution for best-of-999999\+worst-of-999999 at kl 1") as caught:
        optimal(parse_mixture("best-of-999999+worst-of-999999"), kl=1)
    assert "\n" not in str(caught.value)


def penalised(mixture: Mixture, log_density: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """W − β KL of a policy given on the mesh, and its gradient, of which a constant is left out."""
    mesh = graded_mesh()
    density = np.exp(log_density)
    density /= mesh.integral(density)
    survival = mesh.cumulative(density)
    logs = np.log(np.maximum(density, 1e-300))
    wins = mixture.average(Policy(density, survival, 0.0).win_rate)
    phi = -mesh.cumulative(mixture.slope(np.clip(1 - survival, 0, 1), 1 - mesh.nodes))
    return wins - beta * mesh.integral(density * logs), phi - beta * logs


def climb(mixture: Mixture, log_density: np.ndarray, beta: float) -> float:
    """W − β KL at the end of mirror ascent, by multiplicative steps that are halved whenever they fail to climb."""
    step = 0.5 / beta
    value, gradient = penalised(mixture, log_density, beta)
    for _ in range(3000):
        trial = log_density + step * gradient
        trial -= np.log(graded_mesh().integral(np.exp(trial - trial.max()))) + trial.max()
        better, slope = penalised(mixture, trial, beta)
        if better < value:
            step /= 2
            if step < 1e-9 / beta:
                break
        else:
            climbed, log_density, value, gradient = better - value, trial, better, slope
            if climbed < 1e-12:
                break
    return value


@pytest.mark.parametrize("kl", [0.2, 1.0])
@pytest.mark.parametrize("text", ["best-of-4+worst-of-4", "best-of-16+worst-of-16", "standard+best-of-2+9*worst-of-8"])
def test_mirror_ascent_from_any_start_ends_at_the_optimum(text: str, kl: float) -> None:
    mixture = parse_mixture(text)
    phi = optimal(mixture, kl=kl)
    v = graded_mesh().nodes
    optimum = mixture.average(Policy.of(phi, phi.beta).win_rate) - phi.beta * kl
    for start in (0 * v, -4 * v, 4 * v, -np.log(v + 0.01), 3 * np.cos(9 * v)):
        assert climb(mixture, start, phi.beta) == pytest.approx(optimum, abs=2e-6)


@settings(max_examples=25, deadline=None)
@given(ANY, st.floats(0.05, 2), st.integers(0, 2**32 - 1))
def test_no_other_policy_at_its_kl_wins_more(mixture: Mixture, kl: float, seed: int) -> None:
    """The optima of other mixtures' procedures, and tilts by random bumps."""
    phi = optimal(mixture, kl=kl)
    best = mixture.average(Policy.of(phi, phi.beta).win_rate)
    rng = np.random.default_rng(seed)
    bumps = [(rng.normal(), rng.uniform(), rng.uniform(0.05, 0.5)) for _ in range(4)]

    class Bumped(Identity):
        def gap(self, v: object) -> np.ndarray:
            return np.asarray(v) + sum(h * np.exp(-(((np.asarray(v) - at) / wide) ** 2)) for h, at, wide in bumps)

    others = [Bumped(), *(optimal(procedure, kl=kl) for procedure in mixture.procedures)]
    for other in others:
        assert mixture.average(Policy.of(other, beta_for_kl(other, kl)).win_rate) <= best + 1e-8


def bend(procedure: Procedure, policy: float) -> float:
    """g'(F) of a procedure."""
    match procedure:
        case BestOfN(n):
            return n * (n - 1) * policy ** (n - 2)
        case WorstOfN(n):
            return -n * (n - 1) * (1 - policy) ** (n - 2)
        case BestOfPoisson(mu):
            return mu * (2 + mu * policy) * np.exp(mu * (policy - 1))
    return 0.0


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("text", MIXTURES)
def test_every_solution_that_ends_at_one_crosses_it_upwards(text: str, beta: float) -> None:
    """The step of the proof that there is one solution: S(1; a) rises with a, by at least (1 + f(0)) / 2 at S = 1.

    S(v; a) is the solution from the top with log f(1) = a. All solutions of the boundary value problem are among them.
    """
    mixture = parse_mixture(text)

    def shoot(a: float) -> np.ndarray:
        def slopes(v: float, y: np.ndarray) -> list[float]:
            policy, density = min(max(1 - y[0], 0.0), 1.0), float(np.exp(y[1]))
            slope = float(mixture.slope(policy, 1 - v))
            turn = float(mixture.average(lambda one: bend(one, policy) * one.density(1 - v)))
            return [density, -slope / beta, density * y[3], turn * y[2] / beta]

        return solve_ivp(slopes, (0, 1), [0, a, 0, 1], method="LSODA", rtol=1e-9, atol=1e-14).y[:, -1]

    low, high = 0.0, 14.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if shoot(middle)[0] > 1 else (middle, high)
    survival, log_density, rise, _ = shoot(high)
    assert survival == pytest.approx(1, abs=1e-3)
    assert rise > (1 + np.exp(log_density)) / 2 * 0.99
