"""What confidence intervals are made of: the quantiles of their level, and Wilson's interval of a share."""

import math

import numpy as np
from scipy.special import ndtri, stdtrit

from infalign.arrays import Floats
from infalign.errors import InvalidValue


def score_interval(rate: float, samples: float, quantile: float) -> tuple[float, float]:
    """Compute Wilson's score interval: all p with |rate − p| ≤ q √(p(1 − p)/n).

    Args:
        rate: Share of hits.
        samples: Number n of samples, which may be a fraction.
        quantile: Quantile q of the distribution of the standardised rate.

    Returns:
        The ends, between which the rate lies.

    Examples:
        >>> from infalign.intervals import score_interval
        >>> [round(end, 3) for end in score_interval(0.0, 100, 1.96)]
        [0.0, 0.037]
    """
    shrink = quantile**2 / samples
    centre = (rate + shrink / 2) / (1 + shrink)
    half = math.sqrt(shrink * (rate * (1 - rate) + shrink / 4)) / (1 + shrink)
    return min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate)


def normal_quantile(level: float) -> float:
    """Compute how many standard errors an interval reaches to each side, for the normal distribution.

    Args:
        level: Confidence level.

    Returns:
        The quantile, 1.96 for a level of 0.95.

    Raises:
        InvalidValue: The level is not between 0 and 1.
    """
    return float(ndtri((1 + _check_level(level)) / 2))


def student_quantile(level: float, freedom: float) -> float:
    """Compute how many standard errors an interval reaches to each side, for Student's t distribution.

    Args:
        level: Confidence level.
        freedom: Degrees of freedom.

    Returns:
        The quantile, NaN for no degree of freedom.

    Raises:
        InvalidValue: The level is not between 0 and 1.
    """
    return float(stdtrit(freedom or np.nan, (1 + _check_level(level)) / 2))


def degrees_of_freedom(sizes: Floats) -> float:
    """Compute how many degrees of freedom the variance of a mean has, if a few prompts may carry all of it.

    If all but m of P numbers are 0, the variance of their mean is known from these m alone. Where sizes differ, m is
    their effective number (Σ x)²/Σ x² (Kish, 1965). The degrees of freedom are m (P − 1)/(P − m): about m if few
    prompts count, and P − 1 at most. This rule is a heuristic, which was chosen for how often intervals cover.

    Args:
        sizes: (P,) numbers of at least 0.

    Returns:
        The degrees of freedom, from 1 to P − 1; P − 1 if all numbers are 0.

    Examples:
        >>> import numpy as np
        >>> from infalign.intervals import degrees_of_freedom
        >>> degrees_of_freedom(np.array([0.0, 0.0, 0.0, 0.5])), degrees_of_freedom(np.ones(4))
        (1.0, 3.0)
    """
    most, largest = sizes.size - 1, float(sizes.max())
    if largest == 0:
        return float(most)
    shares = sizes / largest
    effective = float(shares.sum() ** 2 / (shares @ shares))
    return min(effective * most / max(sizes.size - effective, 1.0), float(most))


def _check_level(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidValue("level", level, "a number between 0 and 1")
    return level
