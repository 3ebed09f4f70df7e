"""The experiments compute what they say, on numbers whose answer is known."""

import itertools

import numpy as np
import pytest
import reweighted

from infalign import BestOfN, Calibration, Standard, WorstOfN


@pytest.mark.parametrize(("kind", "pick"), [(BestOfN, max), (WorstOfN, min)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tables_win_rate_is_that_of_every_pair_of_draws(kind: type, pick: object, n: int) -> None:
    rewards, weights = np.array([0.0, 1.0, 1.0, 3.0]), np.array([1.0, 2.0, 0.5, 4.0])
    share = weights / weights.sum()
    expected = 0.0
    for ours in itertools.product(range(4), repeat=n):
        for theirs in itertools.product(range(4), repeat=n):
            a, b = pick(rewards[list(ours)]), pick(rewards[list(theirs)])
            expected += np.prod(share[list(ours)]) * 0.25**n * ((a > b) + 0.5 * (a == b))
    assert reweighted.table_win_rate(rewards, weights, kind(n)) == pytest.approx(expected)


def test_an_unweighted_table_is_the_reference() -> None:
    rewards = np.random.default_rng(0).normal(size=50)
    assert reweighted.table_win_rate(rewards, np.ones(50), Standard()) == pytest.approx(0.5)
    assert reweighted.table_kl(np.ones(50)) == pytest.approx(0)


def test_reweighted_draws_win_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(250, 600))
    quantiles = np.array([Calibration(rng.normal(size=32), resolution=1e-9).quantile(row) for row in rewards])
    rows = reweighted.reweight(rewards, quantiles, 32, 0.5)
    assert len(rows) == 30
    for _, kl, _, wins, theory in rows:
        assert kl.value == pytest.approx(0.5, abs=0.05)
        assert wins.value == pytest.approx(theory, abs=1.6 * (wins.high - wins.low) + 0.003)
