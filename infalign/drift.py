"""Drift: the ranks of served candidates against the ranks that a policy predicts.

A policy at some KL is taken for the optimal policy at that KL, with density f on true quantiles. One of its candidates
has rank r among K rewards of the reference with probability ∫ f(u) C(K, r) u^r (1 − u)^{K−r} du, where C(K, r) is the
binomial coefficient. This is the mass of the optimum on piece r of the K + 1 pieces, averaged over prompts.
"""

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from infalign.arrays import Floats
from infalign.mixture import Mixture
from infalign.parsing import parse_transformation
from infalign.policies import Policy, beta_for_kl
from infalign.procedures import Procedure
from infalign.quadrature import graded_mesh


def rank_law(policy: Policy, samples: int) -> Floats:
    """Compute the distribution of the ranks of a policy's candidates among rewards of the reference.

    Args:
        policy: The policy.
        samples: K, the number of reference rewards.

    Returns:
        (K + 1,) probability of each rank from 0 to K.
    """
    mesh = graded_mesh()
    ranks = np.arange(samples + 1.0)[:, None]
    binomial = gammaln(samples + 1) - gammaln(ranks + 1) - gammaln(samples - ranks + 1)
    powers = xlog1py(ranks, -mesh.nodes) + xlogy(samples - ranks, mesh.nodes)
    return np.asarray(np.exp(binomial + powers) @ (mesh.weights * policy.density))


def aligned_rank_law(transformation: str, procedure: Procedure | Mixture, kl: float, samples: int) -> Floats:
    """Compute the :func:`rank_law` of the optimal policy of a transformation at a KL.

    Args:
        transformation: Written form of the transformation.
        procedure: The procedure or mixture that ``optimal`` is the optimum for.
        kl: KL divergence from the reference in nats, in (0, 10].
        samples: K, the number of reference rewards.

    Returns:
        (K + 1,) probability of each rank from 0 to K.

    Raises:
        InvalidValue: The transformation is unknown, or the KL is out of range.
        NotConverged: The optimal transformation was not found.
    """
    phi = parse_transformation(transformation, procedure, kl=kl)
    return rank_law(Policy.of(phi, beta_for_kl(phi, kl)), samples)


def spread(law: Floats, below: Floats, not_above: Floats) -> tuple[Floats, Floats]:
    """Spread each candidate over an interval of [0, 1] by a distribution of ranks.

    If the distribution is right, the candidates together cover [0, 1] evenly, with or without ties (the non-randomised
    probability integral transform of Czado, Gneiting and Held, 2009).

    Args:
        law: (K + 1,) probability of each rank from 0 to K.
        below: Number of reference rewards below each candidate (:meth:`infalign.Calibration.span`).
        not_above: Number of reference rewards not above each candidate, in the same shape.

    Returns:
        The lower and upper ends of the intervals, in the same shape.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(law)])
    ranks = np.arange(cumulative.size)
    return np.interp(below, ranks, cumulative), np.interp(np.asarray(not_above) + 1, ranks, cumulative)


def distance(low: Floats, high: Floats) -> float:
    """Compute Kolmogorov's distance of spread candidates from the uniform distribution.

    Args:
        low: (N,) lower ends from :func:`spread`.
        high: (N,) upper ends.

    Returns:
        The distance, from 0 to 1.
    """
    knots = np.unique(np.concatenate([low, high]))
    width = np.maximum(high - low, np.finfo(float).tiny)
    coverage = np.zeros(knots.size)
    for start, size in zip(low, width, strict=True):
        coverage += np.clip((knots - start) / size, 0, 1)
    return float(np.max(np.abs(coverage / low.size - knots)))
