"""The largest N that a judge supports, against brute force over subsets and against curves that are known."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from infalign import BestOfN, BestOfPoisson, InvalidValue, WorstOfN, find_fall, find_support, score_curve

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(60, 64))
FEW = st.lists(st.tuples(st.integers(0, 3), st.integers(-4, 4)), min_size=1, max_size=6)


@given(FEW, st.sampled_from([(BestOfN, max), (WorstOfN, min)]))
def test_curve_is_the_mean_over_all_subsets_with_ties_shared(row: list[tuple[int, int]], kind: tuple) -> None:
    rewards, scores = (np.array(column, dtype=float) for column in zip(*row, strict=True))
    procedure, select = kind
    for n in range(1, len(row) + 1):
        brute = []
        for subset in map(list, itertools.combinations(range(len(row)), n)):
            # of equal rewards, as those of the whole row share: each stands for all of its value
            best = select(rewards[subset])
            brute.append(scores[rewards == best].mean())
        assert score_curve([rewards], [scores], [procedure(n)])[0, 0] == pytest.approx(np.mean(brute))


def test_curve_is_the_integral_over_quantiles() -> None:
    quantiles = (np.arange(4000) + 0.5) / 4000
    for procedure in (BestOfN(3), BestOfN(20), BestOfPoisson(6), WorstOfN(5)):
        exact = quad(lambda u, p=procedure: (u - u**8) * p.density(u), 0, 1)[0]
        assert score_curve([quantiles], [quantiles - quantiles**8], [procedure])[0, 0] == pytest.approx(exact, abs=1e-3)


def test_a_judge_that_agrees_supports_every_n() -> None:
    for kind in (BestOfN, WorstOfN):
        support = find_support(REWARDS, REWARDS, kind)
        assert (support.n, support.falls, support.peak) == (64, False, 64)
        assert set(support.scores) == {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize(("kind", "sign"), [(BestOfN, 1), (WorstOfN, -1)])
def test_a_fall_is_found_behind_its_peak(kind: type, sign: int) -> None:
    quantiles = np.random.default_rng(1).random((200, 128))
    score = quantiles + (quantiles - 0.9) * (quantiles > 0.9) * -12 + RNG.normal(scale=0.2, size=quantiles.shape)
    support = find_support(sign * quantiles, sign * score, kind)
    densities = {n: quad(lambda u, n=n: (u - 12 * max(u - 0.9, 0)) * n * u ** (n - 1), 0, 1)[0] for n in range(1, 65)}
    best = max(densities, key=densities.__getitem__)
    assert support.falls
    assert best / 2 <= support.peak <= support.n <= 4 * best
    assert {support.n, support.peak} <= support.scores.keys()


def test_a_flat_curve_seldom_falls() -> None:
    rng = np.random.default_rng(2)
    falls = [find_support(rng.normal(size=(30, 32)), rng.normal(size=(30, 32))).falls for _ in range(40)]
    assert np.mean(falls) <= 0.15


def test_what_does_not_vary_does_not_fall() -> None:
    assert find_fall(np.ones((20, 5))) is None
    assert find_fall(np.ones((20, 1))) is None
    support = find_support(np.zeros((20, 8)), np.full((20, 8), 0.1))
    assert (support.n, support.falls) == (8, False)


def test_ties_of_all_rewards_make_a_flat_curve() -> None:
    support = find_support(np.zeros((20, 8)), RNG.normal(size=(20, 8)))
    assert (support.n, support.falls) == (8, False)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"rewards: got '19 prompts', accepted: at least 20"):
        find_support(REWARDS[:19], REWARDS[:19])
    with pytest.raises(InvalidValue, match="at least 20 prompts"):
        find_fall(np.zeros((19, 3)))


def test_prompts_with_fewer_candidates_bound_n() -> None:
    rows = [*REWARDS[:30], *REWARDS[30:, :16]]
    assert find_support(rows, rows).n == 16
