"""Laws of unfinished responses: closed forms against draws, and early rejection in rehearsals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign import BestOfN, InvalidValue, QuantileLaw, Rehearsal, Rejection, fit_rejection


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


def rehearsal(sharpness: float, prompts: int = 60, samples: int = 16, steps: int = 4) -> Rehearsal:
    """Responses whose laws are the sharper, the larger ``sharpness`` is; with 0 they are uniform."""
    random = np.random.default_rng(0)
    quantiles = (np.tile(np.arange(samples), (prompts, 1)) + 0.5) / samples
    quantiles = random.permuted(quantiles, axis=1)
    middles = (np.arange(8) + 0.5) / 8
    noisy = quantiles[..., None] + random.normal(size=(prompts, samples, steps)) * 0.1
    weights = np.exp(-sharpness * (middles - noisy[..., None]) ** 2)
    laws = weights / weights.sum(axis=-1, keepdims=True)
    return Rehearsal(quantiles, random.integers(10, 50, (prompts, samples)), laws, step=10)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_loss_of_early_rejection_is_within_the_limit(n: int) -> None:
    known = rehearsal(50.0)
    fitted = fit_rejection(known, n, limit=0.005)
    assert 0 <= fitted.loss.value <= fitted.loss.high <= 0.005
    assert fitted.saved.value > 0.1
    loss, saved = known.run(fitted.rule, known.groups(n))
    assert (loss.mean(), saved.mean()) == pytest.approx((fitted.loss.value, fitted.saved.value))


def test_nothing_is_rejected_where_the_loss_is_not_certain() -> None:
    assert fit_rejection(rehearsal(50.0, prompts=1), 4, limit=0.002).rule == Rejection(0.0)


def test_a_threshold_of_zero_rejects_none() -> None:
    known = rehearsal(50.0)
    loss, saved = known.run(Rejection(0.0), known.groups(4))
    assert not loss.any()
    assert not saved.any()


def test_one_candidate_is_always_left() -> None:
    known = rehearsal(50.0)
    loss, _ = known.run(Rejection(1.0), known.groups(4))
    assert np.all(np.isfinite(loss))


@given(laws(most=5), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_without_a_finished_candidate_the_likeliest_is_kept(law: QuantileLaw, threshold: float) -> None:
    rejected = Rejection(threshold).reject(law)
    assert not rejected[np.argmax(law.best_probabilities())]


def test_groups_are_of_different_responses() -> None:
    groups = rehearsal(1.0).groups(4, repeats=2)
    assert groups.shape == (60, 8, 4)
    assert all(len(set(group)) == 4 for group in groups.reshape(-1, 4).tolist())
    with pytest.raises(InvalidValue, match="n: got 17"):
        rehearsal(1.0).groups(17)
