"""Laws of unfinished responses: closed forms against draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign import BestOfN, InvalidValue, QuantileLaw


@st.composite
def laws(draw: st.DrawFn, most: int = 6) -> QuantileLaw:
    n, bins = draw(st.integers(1, most)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return QuantileLaw(random.dirichlet(np.full(bins, draw(st.sampled_from([0.1, 1.0, 10.0]))), size=n))


def sample(law: QuantileLaw, draws: int = 20_000) -> np.ndarray:
    """Quantiles of shape (draws, n)."""
    random = np.random.default_rng(0)
    bins = np.stack([random.choice(law.bins, draws, p=row) for row in law.probabilities], axis=1)
    return (bins + random.random(bins.shape)) / law.bins


@given(laws(), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_closed_forms_agree_with_draws(law: QuantileLaw, best: float) -> None:
    drawn = sample(law)
    top = drawn.max(axis=1)
    wins = (drawn == top[:, None]) & (top > best)[:, None]
    assert np.allclose(law.mean, drawn.mean(axis=0), atol=0.02)
    assert np.allclose(law.cdf(best), (drawn <= best).mean(axis=0), atol=0.02)
    assert np.allclose(law.best_probabilities(best), wins.mean(axis=0), atol=0.02)
    assert np.allclose(law.expected_best(best), np.maximum(top, best).mean(), atol=0.02)
    assert np.allclose(law.reach(best), (top > best).mean(), atol=0.02)


@given(laws(), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_best_is_one_of_all(law: QuantileLaw, best: float) -> None:
    stays = np.prod(law.cdf(best))
    assert law.best_probabilities(best).sum() + stays == pytest.approx(1)
    assert law.reach(best) == pytest.approx(1 - stays)
    assert np.all(law.exceeds(best) >= law.best_probabilities(best) - 1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_uniform_laws_give_best_of_n(n: int) -> None:
    law = QuantileLaw(np.tile(QuantileLaw.uniform(8).probabilities, (n, 1)))
    assert law.expected_best() == pytest.approx(BestOfN(n).expected_quantile)
    assert law.best_probabilities() == pytest.approx(np.full(n, 1 / n))
    assert QuantileLaw(law.probabilities[:1]).reach(0.9, draws=n - 1) == pytest.approx(1 - 0.9**n)


def test_laws_that_do_not_count_have_no_chance() -> None:
    law = QuantileLaw(np.tile([0.25, 0.75], (2, 3, 1)))
    pending = np.array([[True, True, False], [False, False, True]])
    chances = law.best_probabilities(np.zeros(2), pending)
    assert chances == pytest.approx(np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("values", [[0.5, 0.6], [-0.1, 1.1], [np.nan, 1.0], []])
def test_what_is_no_law_is_refused(values: list[float]) -> None:
    with pytest.raises(InvalidValue, match="probabilities"):
        QuantileLaw(np.array(values))


def test_laws_are_mirrored_for_worst_of_n() -> None:
    law = QuantileLaw([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    assert law.mirror.mean == pytest.approx(1 - law.mean)
    assert law.mirror.exceeds(0.8) == pytest.approx(law.cdf(0.2))


def test_a_tilted_law_is_that_of_draws_that_are_taken_more_often() -> None:
    random = np.random.default_rng(0)
    law = QuantileLaw([0.1, 0.4, 0.3, 0.2])
    policy = QuantileLaw.of_ranks(np.array([0.1, 0.1, 0.2, 0.6]), 4)
    drawn = random.choice(4, 100_000, p=law.probabilities)
    kept = drawn[random.random(drawn.size) < policy.probabilities[drawn] / policy.probabilities.max()]
    assert law.tilt(policy).probabilities == pytest.approx(np.bincount(kept) / kept.size, abs=0.01)
    assert QuantileLaw.uniform(4).tilt(policy).probabilities == pytest.approx(policy.probabilities)
    assert QuantileLaw([1.0, 0.0]).tilt(QuantileLaw([0.0, 1.0])).probabilities.tolist() == [1.0, 0.0]
    assert QuantileLaw.of_ranks(np.full(65, 1 / 65), 8).probabilities == pytest.approx(np.full(8, 1 / 8))
