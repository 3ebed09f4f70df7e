import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from infalign import (
    BestOfN,
    Calibration,
    Estimator,
    Exponential,
    Gaussian,
    Identity,
    InvalidValue,
    Log,
    Transformation,
    WorstOfN,
    optimal,
    parse_transformation,
)
from infalign.parsing import check_transformation
from infalign.policies import Policy, beta_for_kl

EXPONENTS = st.floats(-100, 100).filter(lambda t: abs(t) > 0.1)
ALL: list[Transformation] = [
    Identity(),
    Log(),
    *(Exponential(t) for t in (5, 10, 100, -5, -10, -100)),
    optimal(BestOfN(4), kl=0.5),
    optimal(WorstOfN(4), kl=0.5),
]
BOUNDED = [transformation for transformation in ALL if not isinstance(transformation, Log)]


@given(EXPONENTS, st.floats(0, 1), st.floats(0, 1))
def test_exponential_forms_increase_and_stay_within_their_range(t: float, u: float, v: float) -> None:
    transformation = Exponential(t)
    low, high = sorted((u, v))
    assert transformation(low) <= transformation(high)
    assert np.all(transformation.derivative([low, high]) >= 0)
    assert abs(float(transformation(u))) <= 1
    expected = math.exp(t * (u - 1)) if t > 0 else -math.exp(t * u)
    assert float(transformation(u)) == pytest.approx(expected)


@pytest.mark.parametrize("transformation", [*ALL, Gaussian()], ids=str)
def test_derivative_is_the_slope(transformation: Transformation) -> None:
    u, step = np.linspace(0.05, 0.95, 19), 1e-6
    slope = (transformation(u + step) - transformation(u - step)) / (2 * step)
    assert transformation.derivative(u) == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("transformation", [*ALL, Gaussian()], ids=str)
def test_gap_is_the_loss_from_the_top(transformation: Transformation) -> None:
    v = np.linspace(0.01, 0.99, 12)
    assert transformation.gap(v) == pytest.approx(transformation.top - transformation(1 - v), abs=1e-12)


@given(EXPONENTS, st.floats(0, 1))
def test_normalised_spans_zero_to_one(t: float, u: float) -> None:
    transformation = Exponential(t).normalise()
    assert transformation([0.0, 1.0]) == pytest.approx([0.0, 1.0])
    assert -1e-12 <= float(transformation(u)) <= 1


@pytest.mark.parametrize("transformation", [Log(), Gaussian()], ids=str)
def test_unbounded_ones_cannot_be_normalised(transformation: Transformation) -> None:
    with pytest.raises(InvalidValue, match="bounded"):
        transformation.normalise()


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("transformation", ALL, ids=str)
def test_log_partition_is_the_integral(transformation: Transformation, beta: float) -> None:
    integral = quad(lambda u: math.exp((transformation(u) - transformation(1.0)) / beta), 0, 1, limit=500)[0]
    expected = math.log(integral) + float(transformation(1.0)) / beta
    assert transformation.log_partition(beta) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("transformation", "beta"),
    [*((phi, beta) for phi in (Identity(), Log()) for beta in (1e-10, 1e-3, 0.3, 1e4)), (Gaussian(), 0.3)],
    ids=str,
)
def test_quadrature_agrees_with_the_closed_form(transformation: Transformation, beta: float) -> None:
    assert Transformation.log_partition(transformation, beta) == pytest.approx(transformation.log_partition(beta))


@pytest.mark.parametrize("transformation", ALL, ids=str)
def test_log_partition_is_finite_at_the_edges(transformation: Transformation) -> None:
    for beta in (1e-10, 1e10):
        assert math.isfinite(transformation.log_partition(beta))


@given(st.floats(0.05, 3))
def test_log_is_best_of_m_distillation(target: float) -> None:
    m = 1 + 1 / beta_for_kl(Log(), target)
    assert math.log(m) - (m - 1) / m == pytest.approx(target, abs=1e-8)


@pytest.mark.parametrize("transformation", [Log(), *(bounded.normalise() for bounded in BOUNDED)], ids=str)
@pytest.mark.parametrize("target", [0.1, 0.5, 2.0])
def test_beta_for_kl_inverts_kl(transformation: Transformation, target: float) -> None:
    assert Policy.of(transformation, beta_for_kl(transformation, target)).kl == pytest.approx(target, abs=1e-7)


@pytest.mark.parametrize("text", ["identity", "log", "gaussian", "exp(10)", "exp(-10)", "exp(0.1234567)", "exp(1e-05)"])
def test_written_form_is_read_back(text: str) -> None:
    assert str(parse_transformation(text)) == text == check_transformation(text)


def test_optimal_is_read_with_what_it_is_optimal_for() -> None:
    assert parse_transformation("optimal", BestOfN(4), kl=0.5) == optimal(BestOfN(4), kl=0.5)
    assert parse_transformation("optimal", WorstOfN(2), beta=0.5) == optimal(WorstOfN(2), beta=0.5)
    assert check_transformation("optimal") == "optimal"
    with pytest.raises(InvalidValue, match="accepted: optimal together with a procedure and a KL"):
        parse_transformation("optimal", BestOfN(4))


@pytest.mark.parametrize("text", ["exp(0)", "exp()", "exp(1.2.3)", "sqrt", "Identity", "exp(nan)", "exp(1e999)"])
def test_other_forms_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"(transformation|t): got"):
        parse_transformation(text)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(InvalidValue, match="beta: got"):
        Exponential(10).log_partition(beta)


@given(EXPONENTS, st.floats(0.05, 20), st.integers(1, 200), st.sampled_from(Estimator))
def test_partition_over_anchors_is_the_mean_over_ranks(t: float, beta: float, k: int, estimator: Estimator) -> None:
    phi = Exponential(t)
    quantiles = [(rank + estimator.prior) / (k + 2 * estimator.prior) for rank in range(k + 1)]
    mean = np.mean([math.exp((float(phi(c)) - phi.top) / beta) for c in quantiles])
    assert phi.log_partition_anchors(beta, k, estimator) - phi.top / beta == pytest.approx(math.log(mean))


def test_partition_over_many_anchors_is_the_partition() -> None:
    for phi in (Identity(), Log(), Exponential(10), Exponential(-10)):
        assert phi.log_partition_anchors(0.3, 100_000) == pytest.approx(phi.log_partition(0.3), abs=1e-3)


def test_partition_over_anchors_is_that_of_simulated_draws() -> None:
    """Rewards in, quantiles by real anchors: E e^{Φ(C)/β} over fresh draws and anchors."""
    rng, phi = np.random.default_rng(0), Exponential(5)
    seen = [np.exp(phi(Calibration(rng.uniform(size=8)).quantile(rng.uniform(size=50))) / 0.5) for _ in range(2000)]
    assert math.log(np.mean(seen)) == pytest.approx(phi.log_partition_anchors(0.5, 8), abs=0.02)
