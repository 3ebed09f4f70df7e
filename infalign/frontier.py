"""What theory says a transformation reaches: KL of the CTRL optimum, and the β that reaches a KL.

The optimum of E[Φ(u)] − β KL has density f(u) = e^{Φ(u)/β} / Z on quantiles, so that
KL = E_f[Φ]/β − log Z, and dlog Z/d(1/β) = E_f[Φ] (InfAlign, arXiv 2412.19792, section 4).
"""

import math

import numpy as np
from scipy.optimize import brentq

from infalign.errors import InvalidValue
from infalign.transforms import Transformation, _graded_mesh


def kl(transformation: Transformation, beta: float) -> float:
    """KL in nats of the optimum from the reference at ``beta``, by quadrature."""
    v, weights = _graded_mesh()
    gap = transformation.gap(v) / beta
    mass = weights * np.exp(-gap)
    z = float(np.sum(mass))
    return max(0.0, -float(np.sum(mass * gap)) / z - math.log(z))


def beta_for_kl(transformation: Transformation, target: float) -> float:
    """The β at which the optimum is ``target`` nats from the reference.

    Raises:
        InvalidValue: ``target`` is not in (0, 10].
    """
    if not 0 < target <= 10:
        raise InvalidValue("kl", target, "nats, above 0 and at most 10")
    # KL falls from infinity to 0 as beta grows; every transformation of unit span is bracketed here.
    root = brentq(lambda log_beta: kl(transformation, math.exp(log_beta)) - target, -40.0, 12.0, xtol=1e-12)
    return math.exp(root)
