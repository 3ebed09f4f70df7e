"""Predicted ranks of served candidates, and the distance from them."""

from functools import partial

import numpy as np
import pytest

from infalign import BestOfN, Calibration, Estimator, InvalidValue, WorstOfN
from infalign.drift import aligned_rank_law, distance, rank_law, spread
from infalign.parsing import parse_transformation
from infalign.policies import AnchoredPolicies, Policy, beta_for_kl, simulate_pieces
from infalign.quadrature import graded_mesh
from infalign.transforms import Log


def test_ranks_of_a_best_of_n_policy_have_their_closed_form() -> None:
    # log at beta 1 has density 2u: the rank among K is r with probability 2 (r + 1) / ((K + 1) (K + 2)).
    law = rank_law(Policy.of(Log(), 1.0), 20)
    assert law == pytest.approx(2 * np.arange(1, 22) / (21 * 22), abs=1e-10)


@pytest.mark.parametrize("text", ["identity", "exp(10)", "exp(-10)"])
def test_ranks_are_the_mass_on_pieces_of_simulated_prompts(text: str) -> None:
    phi = parse_transformation(text)
    law = aligned_rank_law(text, BestOfN(4), 0.5, 16)
    policy = Policy.of(phi, beta_for_kl(phi, 0.5))
    rng = np.random.default_rng(1)
    nodes = np.sort(rng.random((20_000, 16)), axis=1)
    reached = 1 - np.interp(1 - nodes, graded_mesh().nodes, policy.survival)
    simulated = np.diff(np.pad(reached, ((0, 0), (1, 1)), constant_values=(0, 1)), axis=1).mean(axis=0)
    assert law.sum() == pytest.approx(1)
    assert law == pytest.approx(simulated, abs=0.005)


def test_a_policy_that_knew_the_anchors_would_look_much_the_same() -> None:
    # The figure that docs/reference/metrics.md gives for how much the choice of prediction matters.
    pieces = simulate_pieces(64)
    phi = parse_transformation("exp(10)")
    betas = np.exp(np.linspace(-2.5, 0, 200))
    of = partial(AnchoredPolicies.of, phi, estimator=Estimator.JEFFREYS)
    kls = [float(np.mean(of(beta, pieces=pieces[:300]).kl)) for beta in betas]
    anchored = of(float(np.interp(-0.5, -np.array(kls), betas)), pieces=pieces)
    met = np.mean(anchored.pieces * anchored.density, axis=0)
    fresh = aligned_rank_law("exp(10)", BestOfN(4), 0.5, 64)
    assert np.max(np.abs(np.cumsum(met - fresh))) < 0.03


def served(law: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(law.size, count, p=law / law.sum()).astype(float)


def test_what_is_predicted_is_near_and_what_is_not_is_far() -> None:
    best = aligned_rank_law("exp(10)", BestOfN(4), 0.5, 32)
    worst = aligned_rank_law("exp(-10)", WorstOfN(4), 0.5, 32)
    uniform = np.full(33, 1 / 33)
    ranks = served(best, 2048)
    near = distance(*spread(best, ranks, ranks))
    assert near < 0.04
    for other in (worst, uniform):
        expected = np.max(np.abs(np.cumsum(best - other)))
        assert expected > 0.08
        assert distance(*spread(other, ranks, ranks)) == pytest.approx(expected, abs=0.04)


def test_the_distance_of_untied_ranks_is_that_of_their_histogram() -> None:
    law = aligned_rank_law("identity", BestOfN(2), 0.3, 10)
    ranks = served(np.full(11, 1 / 11), 500)
    histogram = np.bincount(ranks.astype(int), minlength=11) / 500
    assert distance(*spread(law, ranks, ranks)) == pytest.approx(np.max(np.abs(np.cumsum(histogram - law))), abs=1e-12)


def test_ties_are_spread_over_the_ranks_they_span() -> None:
    # Rewards of three values: candidates and anchors tie most of the time, yet nothing has drifted.
    rng = np.random.default_rng(0)
    below, upto = [], []
    for _ in range(300):
        calibration = Calibration(rng.integers(0, 3, 12).astype(float))
        low, high = calibration.span(rng.integers(0, 3, 8).astype(float))
        below.append(low)
        upto.append(high)
    law = np.full(13, 1 / 13)
    ends = np.concatenate(below), np.concatenate(upto)
    assert distance(*spread(law, *ends)) < 0.03
    middle = (ends[0] + ends[1]) / 2
    assert distance(*spread(law, middle, middle)) > 0.06  # mid-ranks alone would look drifted


def test_a_compressed_calibration_spans_nothing() -> None:
    calibration = Calibration(np.arange(100.0))
    low, high = calibration.compress(10).span([50.0])
    assert low == high
    assert calibration.span([50.0]) == (50, 51)


def test_a_kl_that_no_policy_has_is_refused() -> None:
    with pytest.raises(InvalidValue):
        aligned_rank_law("identity", BestOfN(4), 11.0, 8)
