"""What theory says a transformation reaches: KL of the CTRL optimum, and the β that reaches a KL.

The optimum of E[Φ(u)] − β KL has density f(u) = e^{Φ(u)/β} / Z on quantiles, so that
KL = E_f[Φ]/β − log Z, and dlog Z/d(1/β) = E_f[Φ] (InfAlign, arXiv 2412.19792, section 4).
"""

import math

import numpy as np
from scipy.optimize import brentq

from infalign.errors import InvalidValue
from infalign.transforms import Transformation, graded_mesh


def kl(transformation: Transformation, beta: float) -> float:
    """KL in nats of the optimum from the reference at ``beta``, by quadrature."""
    v, weights = graded_mesh()
    with np.errstate(over="ignore"):
        gap = transformation.gap(v) / beta
    mass = weights * np.exp(-gap)
    z = float(np.sum(mass))
    return max(0.0, -float(np.sum(mass[mass > 0] * gap[mass > 0])) / z - math.log(z))


def beta_for_kl(transformation: Transformation, target: float) -> float:
    """The β at which the optimum is ``target`` nats from the reference.

    Raises:
        InvalidValue: ``target`` is not in (0, 10].
    """
    if not 0 < target <= 10:
        raise InvalidValue("kl", target, "nats, above 0 and at most 10")
    low, high = -1.0, 1.0  # log beta; KL falls from infinity to 0 as beta grows
    while kl(transformation, math.exp(low)) < target:
        low *= 2
    while kl(transformation, math.exp(high)) > target:
        high *= 2
    return math.exp(brentq(lambda log_beta: kl(transformation, math.exp(log_beta)) - target, low, high, xtol=1e-12))
