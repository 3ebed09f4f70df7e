"""Whether served candidates still are what a policy was measured to be: their ranks against those it predicts.

A policy that has reached a KL is taken for the optimum at that KL, with density f on true quantiles. The rank of one
of its candidates among K reference rewards, which it has never met, is r with probability
∫ f(u) C(K, r) u^r (1 − u)^{K−r} du: the mass of the optimum on piece r of the K + 1, averaged over prompts.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlog1py, xlogy

from infalign.frontier import beta_for_kl
from infalign.policies import Policy
from infalign.procedures import Procedure
from infalign.quadrature import graded_mesh
from infalign.transforms import parse_transformation

Floats = NDArray[np.float64]


def rank_law(policy: Policy, samples: int) -> Floats:
    """(K + 1,) probability of each rank 0..K among K = ``samples`` reference rewards."""
    mesh = graded_mesh()
    ranks = np.arange(samples + 1.0)[:, None]
    binomial = gammaln(samples + 1) - gammaln(ranks + 1) - gammaln(samples - ranks + 1)
    below = xlog1py(ranks, -mesh.nodes) + xlogy(samples - ranks, mesh.nodes)
    return np.asarray(np.exp(binomial + below) @ (mesh.weights * policy.density))


def aligned_rank_law(transformation: str, procedure: Procedure, kl: float, samples: int) -> Floats:
    """The :func:`rank_law` of the optimum for a written transformation at ``kl`` nats from the reference.

    Raises:
        InvalidValue: an unknown transformation, or a KL that is not in (0, 10].
        NotConverged: the optimal transformation was not found.
    """
    phi = parse_transformation(transformation, procedure, kl=kl)
    return rank_law(Policy.of(phi, beta_for_kl(phi, kl)), samples)


def spread(law: Floats, below: Floats, upto: Floats) -> tuple[Floats, Floats]:
    """Where candidates lie on [0, 1] by ``law``: each is spread evenly over an interval, of which these are the ends.

    ``below`` and ``upto`` count the reference rewards that a candidate is above, and those that it is not below
    (:meth:`infalign.Calibration.span`). If the law holds, candidates together cover [0, 1] evenly (the non-randomised
    probability integral transform of Czado, Gneiting and Held, 2009), ties or not.
    """
    reached = np.concatenate([[0.0], np.cumsum(law)])
    ranks = np.arange(reached.size)
    return np.interp(below, ranks, reached), np.interp(np.asarray(upto) + 1, ranks, reached)


def distance(low: Floats, high: Floats) -> float:
    """Kolmogorov's distance of what :func:`spread` makes of candidates from the uniform distribution, 0 to 1."""
    knots = np.unique(np.concatenate([low, high]))
    width = np.maximum(high - low, np.finfo(float).tiny)
    covered = np.zeros(knots.size)
    for start, size in zip(low, width, strict=True):
        covered += np.clip((knots - start) / size, 0, 1)
    return float(np.max(np.abs(covered / low.size - knots)))
