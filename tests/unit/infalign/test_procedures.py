import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from infalign import BestOfN, InvalidValue, Procedure, Standard, WorstOfN, parse_procedure

PROCEDURES: list[Procedure] = [Standard(), BestOfN(1), BestOfN(4), BestOfN(32), WorstOfN(2), WorstOfN(8)]


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_cumulative_is_the_integral_of_the_density(procedure: Procedure) -> None:
    for u in (0.1, 0.5, 0.9, 1.0):
        assert quad(procedure.density, 0, u)[0] == pytest.approx(float(procedure.cumulative(u)), abs=1e-9)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_expected_quantile_and_kl_are_those_of_the_density(procedure: Procedure) -> None:
    mean = quad(lambda u: u * procedure.density(u), 0, 1)[0]
    kl = quad(lambda u: procedure.density(u) * math.log(max(procedure.density(u), 1e-300)), 0, 1)[0]
    assert mean == pytest.approx(procedure.expected_quantile, abs=1e-9)
    assert kl == pytest.approx(procedure.kl_bound, abs=1e-6)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=str)
def test_written_form_is_read_back(procedure: Procedure) -> None:
    assert parse_procedure(str(procedure)) == procedure


@pytest.mark.parametrize("text", ["best-of-0", "best-of", "Best-of-4", "worst-of--1", "best-of-04", "median-of-3", ""])
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
