"""The live transformation: the gradient of the win rate at a policy that is not yet the optimum.

Under a procedure with density g, a policy whose quantiles have the distribution function F wins 1 − ∫ G(F(u)) g(u) du
against the reference. This is not linear in F. Its derivative, for mass that is added at the quantile y, is

    Φ_F(y) = −∫_y^1 g(F(u)) g(u) du.

At the optimum, Φ_F is the optimal transformation (InfAlign, arXiv 2412.19792, section 3). Before, it says which
responses improve *this* policy's win rate.
"""

import numpy as np

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.mixture import Mixture
from infalign.procedures import Procedure

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
"""Gauss–Legendre rule on [−1, 1] for each cell. It is exact for best-of-n and worst-of-n up to n = 16."""


def live_transformation(procedure: Procedure | Mixture, law: Floats) -> Floats:
    """Compute Φ_F at each rank.

    Rank r stands for the quantiles from r/(K + 1) to (r + 1)/(K + 1). Within, the policy is taken for uniform, and the
    value is the mean over these quantiles.

    Args:
        procedure: How both models are decoded. Of a mixture, the weighted mean of the win rates counts.
        law: (K + 1,) probability of each rank of the policy's responses among K anchors.

    Returns:
        (K + 1,) values, increasing and not above 0.

    Raises:
        InvalidValue: ``law`` is not a distribution.

    Examples:
        >>> import numpy as np
        >>> from infalign import BestOfN, Standard, live_transformation
        >>> live_transformation(Standard(), np.full(4, 0.25)).tolist()
        [-0.875, -0.625, -0.375, -0.125]
        >>> live_transformation(BestOfN(4), np.array([0.1, 0.2, 0.3, 0.4])).round(3).tolist()
        [-1.763, -1.762, -1.726, -1.109]
    """
    law = np.asarray(law, dtype=np.float64)
    if law.ndim != 1 or not law.size or not np.all(law >= 0) or abs(law.sum() - 1) > 1e-6:
        raise InvalidValue("law", law.shape, "(K + 1,) probabilities that add up to 1")
    width = 1 / law.size
    inside = (NODES + 1) / 2
    u = width * (np.arange(law.size)[:, None] + inside)
    below = np.concatenate([[0.0], np.cumsum(law)[:-1]])
    policy = np.clip(below[:, None] + law[:, None] * inside, 0, 1)
    slopes = Mixture.of(procedure).slope(policy, u) * WEIGHTS * width / 2
    whole = slopes.sum(axis=1)
    above = np.cumsum(whole[::-1])[::-1] - whole  # of the cells above
    return np.asarray(-above - slopes @ inside)
