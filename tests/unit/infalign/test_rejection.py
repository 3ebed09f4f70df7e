"""Early rejection: what the rules reject, what a rehearsal counts, and what is fitted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign import (
    BestOfN,
    BestOfPoisson,
    Cost,
    Fixed,
    InvalidValue,
    QuantileLaw,
    Rehearsal,
    Rejection,
    Standard,
    StoppingRule,
    Target,
    TargetRejection,
    WorstOfN,
    fit_rejection,
    fit_share,
)
from infalign.arrays import Floats
from infalign.manifest import ScorerRecord

FIGURES = {"loss": 0.0, "loss_low": 0.0, "loss_high": 0.0, "saved": 0.1, "saved_low": 0.1, "saved_high": 0.1}
TOKENS = {"tokens": 0.7, "tokens_low": 0.6, "tokens_high": 0.8}


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


def record(**changes: object) -> ScorerRecord:
    fields = {
        **dict.fromkeys(("reference", "reward_model", "calibration", "chat_template", "trunk"), "a"),
        "edges": (0.0, 1.0, 2.0),
        "checkpoint": 8,
        "limit": 0.002,
        "rejection": {
            "best-of-4": {"threshold": 0.04, **FIGURES},
            "best-of-8": {"threshold": 0.01, **FIGURES},
            "best-of-16": {"threshold": 0.03, **FIGURES},
            "worst-of-4": {"threshold": 0.1, **FIGURES},
        },
        "shares": {"best-of-n": {"share": 0.5, **TOKENS}, "worst-of-n": {"share": 0.2, **TOKENS}},
        "measured": {},
    }
    return ScorerRecord.model_validate(fields | changes)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_without_a_finished_candidate_the_likeliest_is_kept(n: int, bins: int, seed: int, threshold: float) -> None:
    law = QuantileLaw(np.random.default_rng(seed).dirichlet(np.ones(bins), size=n))
    assert not Rejection(threshold).reject(law)[np.argmax(law.best_probabilities())]
    kept = np.argmax(law.exceeds(threshold) + 1e-9 * law.mean)
    assert not TargetRejection(threshold, least=1.0).reject(law)[kept]


def test_a_target_rejects_what_a_fresh_candidate_replaces() -> None:
    law = QuantileLaw(np.tile([[0.9, 0.1, 0.0, 0.0], [0.5, 0.3, 0.18, 0.02]], (4, 1, 1)))
    rule = TargetRejection(0.75, least=0.1)
    pending = np.array([[True, True], [True, True], [True, True], [False, True]])
    rejected = rule.reject(law, best=[0.0, 0.0, 0.6, 0.0], pending=pending, fresh=[1, 0, 0, 0])
    assert rejected.tolist() == [[True, True], [True, False], [True, True], [False, False]]
    assert not TargetRejection(0.75, least=0.0).reject(law, fresh=1).any()


@pytest.mark.parametrize("values", [(1.5, 0.1), (0.5, -0.1)])
def test_what_is_no_probability_is_refused(values: tuple[float, float]) -> None:
    with pytest.raises(InvalidValue, match="accepted: a number from 0 to 1"):
        TargetRejection(*values)


def test_rounds_are_counted_token_by_token() -> None:
    """Two of four candidates run side by side, for four tokens a round."""
    good, bad = [0.0, 1.0], [1.0, 0.0]
    stored = Rehearsal(
        np.array([[0.3, 0.2, 0.9, 0.8]]), np.array([[10, 6, 7, 9]]), np.array([[[good], [bad], [good], [good]]]), step=4
    )
    run = stored.run(TargetRejection(0.6, least=0.5), width=2, target=0.85)
    # 0 draws 4, 4 and 2 tokens; 1 is rejected after 4; 2 draws 4 and 3; 3 would be next, but 2 is good enough.
    assert (run.rounds.tolist(), run.tokens.tolist(), run.started.tolist()) == ([3], [10 + 4 + 7], [3])
    assert (run.selected.tolist(), run.quantile.tolist()) == ([2], [0.9])
    run = stored.run(width=2, target=0.85)
    # Without rejection 1 ends in round 2, and 2 in round 4. 3 starts in the place of 0 after round 3, and draws 4.
    assert (run.rounds.tolist(), run.tokens.tolist(), run.started.tolist()) == ([4], [10 + 6 + 7 + 4], [4])
    run = stored.run()
    assert (run.rounds.tolist(), run.tokens.tolist(), run.quantile.tolist()) == ([3], [32], [0.9])
    assert stored.mirror.run().quantile.tolist() == [0.8]
    with pytest.raises(InvalidValue, match="width"):
        stored.run(width=0)


@given(st.integers(1, 16), st.floats(0.05, 1), st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_every_group_ends_with_an_answer(width: int, target: float, least: float) -> None:
    known = rehearsal(50.0, prompts=5)
    run = known.run(TargetRejection(target, least), width, target)
    assert np.all(run.quantile > 0)
    assert np.all(run.tokens <= known.lengths.sum(axis=-1))
    assert np.all((run.quantile >= target) | (run.started == 16))


@pytest.mark.parametrize(("n", "family"), [(2, "best"), (16, "best"), (4, "worst")])
def test_the_loss_of_early_rejection_is_within_the_limit(n: int, family: str) -> None:
    known = rehearsal(50.0, prompts=30)
    known = known if family == "best" else known.mirror
    fitted = fit_rejection(known, n, limit=0.005)
    assert 0 <= fitted.loss.value <= fitted.loss.high <= 0.005
    assert fitted.saved.value > 0.1
    groups = known.group(n)
    run = groups.run(fitted.rule)
    assert (groups.quantiles.max(axis=-1) - run.quantile).mean() == pytest.approx(fitted.loss.value)


def test_nothing_is_rejected_where_the_loss_is_not_certain() -> None:
    assert fit_rejection(rehearsal(50.0, prompts=1), 4, limit=0.002).rule == Rejection(0.0)
    assert fit_share(rehearsal(50.0, prompts=1)).share == 0
    assert fit_share(rehearsal(0.0)).share == 0  # nothing is known, so nothing can be gained
    with pytest.raises(InvalidValue, match="targets"):
        fit_share(rehearsal(50.0), targets=[1.0])


def test_the_fitted_share_saves_what_it_says() -> None:
    """A rehearsal one by one, without an end of the candidates, takes as many tokens as Wald's equation says."""
    known = rehearsal(50.0)
    fitted = fit_share(known, targets=[0.8])
    assert 0.1 < fitted.share < 1
    assert fitted.tokens.high < 0.8
    order = np.random.default_rng(0).integers(0, 16, (60, 20, 40))
    drawn = known.take(order)
    rule = TargetRejection(0.8, fitted.share * 0.2)
    with_rule, without = (drawn.run(each, width=1, target=0.8).tokens.mean() for each in (rule, None))
    assert with_rule / without == pytest.approx(fitted.tokens.value, abs=0.03)


def test_a_threshold_of_zero_rejects_none() -> None:
    known = rehearsal(50.0).group(4)
    run, whole = known.run(Rejection(0.0)), known.run()
    assert np.array_equal(run.tokens, whole.tokens)
    assert np.array_equal(run.selected, whole.selected)


def test_one_candidate_is_always_left() -> None:
    assert np.all(rehearsal(50.0).group(4).run(Rejection(1.0)).quantile > 0)


def test_groups_are_of_different_responses() -> None:
    stored = rehearsal(1.0)
    groups = replace(stored, quantiles=np.tile(np.arange(16.0), (60, 1))).group(4, repeats=2).quantiles
    assert groups.shape == (60, 8, 4)
    assert all(len(set(group)) == 4 for group in groups.reshape(-1, 4).tolist())
    with pytest.raises(InvalidValue, match="n: got 17"):
        stored.group(17)


@pytest.mark.parametrize(
    ("n", "threshold"),
    [(8, 0.01), (4, 0.04), (2, 0.08), (1, 0.16), (6, 0.08 / 6), (12, 0.08 / 12), (64, 0.48 / 64)],
)
def test_thresholds_between_and_beyond_those_that_were_fitted(n: int, threshold: float) -> None:
    assert record().rejection_for(BestOfN(n)).threshold == pytest.approx(threshold)


def test_thresholds_of_other_procedures() -> None:
    assert record().rejection_for(WorstOfN(8)).threshold == pytest.approx(0.05)
    assert record().rejection_for(Standard()) == Rejection(0.0)
    assert record().rejection_for(BestOfPoisson(4.0)) == Rejection(0.0)
    assert record(rejection={}).rejection_for(BestOfN(4)) == Rejection(0.0)


@pytest.mark.parametrize(
    ("rule", "samples", "law", "expected"),
    [
        (Target(BestOfN(16), 0.9), None, None, (0.9, 0.05)),
        (Target(WorstOfN(16), 0.1), None, None, (0.9, 0.02)),
        (Cost(BestOfN(16), 0.02), None, None, (0.8, 0.1)),
        (Target(BestOfN(16), 0.9), 32, None, (30 / 33, 0.5 * 3 / 33)),
        (Target(BestOfN(16), 0.75), None, np.array([0.1, 0.2, 0.3, 0.4]), (0.75, 0.175)),
    ],
)
def test_a_stopping_rule_rejects_by_its_threshold(
    rule: StoppingRule, samples: int | None, law: Floats | None, expected: tuple[float, float]
) -> None:
    found = record().rejection_under(rule, samples, law)
    assert isinstance(found, TargetRejection)
    assert (found.target, found.least) == pytest.approx(expected)


def test_laws_are_tilted_by_the_ranks_of_a_policy() -> None:
    """A better policy's candidates are not rejected for having the law of the reference's."""
    policy = np.array([0.1, 0.1, 0.2, 0.6])
    law = QuantileLaw(np.tile([0.5, 0.5], (3, 1)))
    for rule in (Target(BestOfN(16), 0.75), Target(WorstOfN(16), 0.25)):
        ours = policy if isinstance(rule.procedure, BestOfN) else policy[::-1]
        found = record().rejection_under(rule, law=ours)
        assert not found.reject(law, fresh=1).any()
        assert found.policy
        assert found.policy.probabilities == pytest.approx([0.2, 0.8])
        assert TargetRejection(0.75, 0.3).reject(law, fresh=1).all()
    best = record().rejection_for(BestOfN(4), policy)
    finished = QuantileLaw([[0.95, 0.05], [0.01, 0.99]])
    assert best.reject(finished, best=0.4).tolist() == [False, False]
    assert Rejection(best.threshold).reject(finished, best=0.4).tolist() == [True, False]


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_a_candidate_of_which_nothing_is_known_yet_is_as_good_as_a_fresh_one(target: float) -> None:
    """Also where nearly all of a policy's candidates are at the very top, which no bin shows."""
    steep = np.exp(np.arange(65) / 4.0)
    found = record().rejection_under(Target(BestOfN(16), target), law=steep / steep.sum())
    assert isinstance(found, TargetRejection)
    unknown = QuantileLaw(np.full((1, 2), 0.5))
    assert unknown.tilt(found.policy).exceeds(target) == pytest.approx(2 * found.least)  # the share is a half
    assert not found.reject(unknown, fresh=1).any()


def test_a_rule_that_never_stops_rejects_as_the_procedure_does() -> None:
    assert record(shares={}).rejection_under(Target(BestOfN(16), 0.9)) == TargetRejection(0.9, 0.0)
    assert record().rejection_under(Fixed(BestOfN(16))) == Rejection(0.03)
    assert record().rejection_under(Target(BestOfN(16), 0.999), samples=32) == Rejection(0.03)
