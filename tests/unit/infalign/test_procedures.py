import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from infalign import (
    BestOfN,
    BestOfPoisson,
    Exponential,
    Identity,
    InvalidValue,
    Log,
    Policy,
    Procedure,
    Standard,
    WorstOfN,
    beta_for_kl,
    optimal,
    parse_procedure,
)

PROCEDURES: list[Procedure] = [
    Standard(),
    *(BestOfN(n) for n in (1, 4, 32)),
    *(WorstOfN(n) for n in (1, 2, 8)),
    *(BestOfPoisson(mu) for mu in (1e-4, 0.5, 3, 20, 60)),
]


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_cumulative_is_the_integral_of_the_density(procedure: Procedure) -> None:
    for u in (0.1, 0.5, 0.9, 1.0):
        assert quad(procedure.density, 0, u)[0] == pytest.approx(float(procedure.cumulative(u)), abs=1e-9)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_expected_quantile_and_kl_are_those_of_the_density(procedure: Procedure) -> None:
    mean = quad(lambda u: u * procedure.density(u), 0, 1, points=[0.9])[0]
    kl = quad(lambda u: procedure.density(u) * math.log(max(procedure.density(u), 1e-300)), 0, 1, points=[0.9])[0]
    assert mean == pytest.approx(procedure.expected_quantile, abs=1e-9)
    assert kl == pytest.approx(procedure.kl_bound, abs=1e-6)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_written_form_is_read_back(procedure: Procedure) -> None:
    assert parse_procedure(str(procedure)) == procedure


@pytest.mark.parametrize(
    "text",
    [
        "best-of-0",
        "best-of",
        "Best-of-4",
        "worst-of--1",
        "best-of-04",
        "median-of-3",
        "best-of-poisson",
        "best-of-poisson(x)",
        "best-of-poisson(1.2.3)",
        pytest.param("best-of-" + "9" * 5000, id="5000 digits"),
        "",
    ],
)
def test_other_forms_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"procedure: got .*best-of-N"):
        parse_procedure(text)


@pytest.mark.parametrize("kind", [BestOfN, WorstOfN])
def test_n_below_one_is_refused(kind: type[Procedure]) -> None:
    with pytest.raises(InvalidValue, match="n: got 0"):
        kind(0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_ranking_selects_the_extreme_and_keeps_order_on_ties(rewards: list[float]) -> None:
    best, worst = BestOfN(len(rewards)).ranking(rewards), WorstOfN(len(rewards)).ranking(rewards)
    assert best[0] == rewards.index(max(rewards))
    assert worst[0] == rewards.index(min(rewards))
    assert sorted(best) == sorted(worst) == list(range(len(rewards)))
    assert list(np.array(rewards)[best]) == sorted(rewards, reverse=True)


def test_standard_takes_draws_as_they_come() -> None:
    assert list(Standard().ranking([3.0, 1.0, 2.0])) == [0, 1, 2]


@pytest.mark.parametrize("mu", [0.0, -1.0, math.nan, math.inf, 501.0])
def test_mu_out_of_range_is_refused(mu: float) -> None:
    with pytest.raises(InvalidValue, match="mu: got"):
        BestOfPoisson(mu)


def test_best_of_poisson_is_the_mixture_of_best_of_n() -> None:
    u = np.linspace(0, 1, 7)
    chances = [math.exp(-3) * 3**k / math.factorial(k) for k in range(60)]
    mixture = sum(chance * BestOfN(k + 1).density(u) for k, chance in enumerate(chances))
    assert BestOfPoisson(3).density(u) == pytest.approx(mixture)
    samples = sum(chance * BestOfN(k + 1).order_weights(60) for k, chance in enumerate(chances))
    assert BestOfPoisson(3).order_weights(60) == pytest.approx(samples)


@given(st.integers(1, 8), st.data())
def test_order_weights_count_the_subsets_that_select_each_sample(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m))
    subsets = list(itertools.combinations(range(m), n))
    for procedure, pick in ((BestOfN(n), max), (WorstOfN(n), min)):
        counted = np.bincount([pick(subset) for subset in subsets], minlength=m) / len(subsets)
        assert procedure.order_weights(m) == pytest.approx(counted, abs=1e-12)
    assert Standard().order_weights(m) == pytest.approx(np.full(m, 1 / m))


@pytest.mark.parametrize("procedure", [BestOfN(5), WorstOfN(5), BestOfPoisson(3)], ids=str)
def test_too_few_samples_weigh_nan(procedure: Procedure) -> None:
    assert np.all(np.isnan(procedure.order_weights(4)))
    assert np.sum(procedure.order_weights(300)) == pytest.approx(1)


def test_a_new_procedure_is_one_small_class() -> None:
    """The median of three candidates: density and distribution function are all that the optimum needs."""

    class MedianOfThree(BestOfPoisson):
        def density(self, u: object) -> np.ndarray:
            return 6 * np.asarray(u) * (1 - np.asarray(u))

        def cumulative(self, u: object) -> np.ndarray:
            return 3 * np.asarray(u) ** 2 - 2 * np.asarray(u) ** 3

    median = MedianOfThree(1)
    phi = optimal(median, kl=0.5)
    best = Policy.of(phi, phi.beta).win_rate(median)
    for other in (Identity(), Log(), Exponential(5), Exponential(-5)):
        assert Policy.of(other, beta_for_kl(other, 0.5)).win_rate(median) < best
