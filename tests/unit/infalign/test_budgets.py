"""Budgets of a batch: closed forms against draws, and greedy shares against all others."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign import InvalidValue, QuantileLaw, allocate_draws
from infalign.budgets import expected_best

EDGES = np.array([-3.0, -1.0, -1.0, 0.5, 4.0])


@given(st.integers(0, 99), st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_the_expected_best_is_that_of_draws(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    law = QuantileLaw(random.dirichlet(np.ones(4)))
    bins = random.choice(4, (40_000, n), p=law.probabilities)
    drawn = EDGES[bins] + random.random(bins.shape) * np.diff(EDGES)[bins]
    means = np.maximum.accumulate(drawn, axis=1).mean(axis=0)
    assert expected_best(law, EDGES, n) == pytest.approx(means, abs=0.05)


@given(st.integers(0, 99), st.integers(3, 12))
@settings(max_examples=15, deadline=None)
def test_no_other_share_is_better(seed: int, total: int) -> None:
    law = QuantileLaw(np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=3))
    best = expected_best(law, EDGES, 6)

    def value(draws: tuple[int, ...]) -> float:
        return sum(float(best[prompt, count - 1]) for prompt, count in enumerate(draws))

    found = allocate_draws(law, EDGES, total, most=6) if total <= 18 else None
    assert found is not None
    assert found.sum() == total
    others = (draws for draws in product(range(1, 7), repeat=3) if sum(draws) == total)
    assert value(tuple(found.tolist())) == pytest.approx(max(map(value, others)))


def test_equal_prompts_get_equal_shares() -> None:
    law = QuantileLaw(np.full((5, 4), 0.25))
    assert allocate_draws(law, EDGES, 20, most=16).tolist() == [4] * 5
    assert sorted(allocate_draws(law, EDGES, 22, most=16).tolist()) == [4, 4, 4, 5, 5]
    certain = QuantileLaw(np.eye(4)[[1, 1]])  # a bin without width: nothing is gained
    assert allocate_draws(certain, EDGES, 6, most=4).tolist() == [3, 3]


def test_shares_stay_within_their_limits() -> None:
    law = QuantileLaw([[0.0, 1.0, 0.0, 0.0], [0.4, 0.0, 0.0, 0.6]])
    assert allocate_draws(law, EDGES, 20, most=12, least=3).tolist() == [8, 12]
    assert allocate_draws(law, EDGES, 12, most=12, least=3).tolist() == [3, 9]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total": 1, "most": 4}, "total: got 1, accepted: a whole number from 2 to 8"),
        ({"total": 9, "most": 4}, "total: got 9"),
        ({"total": 4, "most": 4, "least": 0}, "least: got 0, accepted: a whole number from 1 to 4"),
    ],
)
def test_budgets_that_cannot_be_shared_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        allocate_draws(QuantileLaw(np.full((2, 4), 0.25)), EDGES, **options)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InvalidValue, match="edges"):
        expected_best(QuantileLaw(np.full(4, 0.25)), EDGES[::-1], 2)
    with pytest.raises(InvalidValue, match="n: got 0"):
        expected_best(QuantileLaw(np.full(4, 0.25)), EDGES, 0)
    with pytest.raises(InvalidValue, match="law"):
        allocate_draws(QuantileLaw(np.full(4, 0.25)), EDGES, 4, most=4)
