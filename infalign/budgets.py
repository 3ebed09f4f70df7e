"""Budgets: how many candidates each prompt of a batch gets, if their sum is given.

Where the rewards of a prompt hardly differ, more candidates gain little; where they differ much, they gain more. This
is AdaBoN (Raman et al., arXiv 2505.12050), with the law of the reward that a prefix scorer predicts in place of one
that is estimated from a first round of draws.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue
from infalign.quantile_law import QuantileLaw


def expected_best(law: QuantileLaw, edges: ArrayLike, n: int) -> Floats:
    """Compute the expected highest reward of 1 to n draws.

    The density is constant in each bin, so the distribution function F is linear there, and E[best of n] = r_B −
    ∫ F(r)^n dr is the sum of (F_b^{n+1} − F_{b−1}^{n+1}) / ((n + 1) (F_b − F_{b−1})) times the width over the bins.

    Args:
        law: (..., B) laws of the reward, such as :meth:`infalign.PrefixScorer.reward_law`.
        edges: (B + 1,) rewards between which the bins lie.
        n: The largest number of draws.

    Returns:
        (..., n) expected rewards, of which the first is the mean reward. They are concave in the number of draws.

    Raises:
        InvalidValue: The number of draws is below 1, or the edges are not B + 1 rewards in increasing order.

    Examples:
        >>> from infalign import QuantileLaw
        >>> from infalign.budgets import expected_best
        >>> expected_best(QuantileLaw([0.5, 0.5]), [0.0, 0.5, 1.0], 3).round(3).tolist()
        [0.5, 0.667, 0.75]
    """
    places = check_finite("edges", edges)
    if places.shape != (law.bins + 1,) or np.any(np.diff(places) < 0):
        raise InvalidValue("edges", places.tolist(), f"{law.bins + 1} rewards in increasing order")
    if n < 1:
        raise InvalidValue("n", n, "a whole number of at least 1")
    above = np.minimum(np.cumsum(law.probabilities, axis=-1), 1.0)
    below = np.concatenate([np.zeros_like(above[..., :1]), above[..., :-1]], axis=-1)
    area, sums = np.empty((*above.shape[:-1], n)), np.ones_like(above)
    power = np.ones_like(above)
    for draws in range(1, n + 1):
        power = power * above  # F_b^draws; sums is the sum of F_b^i F_{b−1}^{draws−i}, which no difference divides
        sums = sums * below + power
        area[..., draws - 1] = (sums / (draws + 1)) @ np.diff(places)
    return np.asarray(places[-1] - area)


def allocate_draws(law: QuantileLaw, edges: ArrayLike, total: int, most: int, least: int = 1) -> NDArray[np.int_]:
    """Share draws among the prompts of a batch so that the sum of their expected best rewards is largest.

    Each draw goes to the prompt that gains most by it. This is optimal, since the gains of a prompt fall.

    Args:
        law: (P, B) laws of the rewards of each prompt, from :meth:`infalign.PrefixScorer.reward_law`.
        edges: (B + 1,) rewards between which the bins lie.
        total: Draws of all prompts together.
        most: Draws of a prompt at most.
        least: Draws of a prompt at least.

    Returns:
        (P,) draws of each prompt. Where prompts gain equally, the one with the fewest draws gets the next.

    Raises:
        InvalidValue: The laws or edges have another shape, or so many draws cannot be shared.

    Examples:
        >>> from infalign import QuantileLaw, allocate_draws
        >>> law = QuantileLaw([[0.0, 1.0, 0.0], [0.4, 0.2, 0.4]])
        >>> allocate_draws(law, [0.0, 2.0, 3.0, 9.0], total=16, most=16).tolist()
        [3, 13]
    """
    if law.probabilities.ndim != 2:
        raise InvalidValue("law", law.probabilities.shape, "(P, B): a law for each of P prompts")
    prompts = len(law.probabilities)
    if not 1 <= least <= most:
        raise InvalidValue("least", least, f"a whole number from 1 to {most}")
    if not least * prompts <= total <= most * prompts:
        raise InvalidValue("total", total, f"a whole number from {least * prompts} to {most * prompts}")
    gains = np.diff(expected_best(law, edges, most), axis=-1)[:, least - 1 :]
    gains = np.minimum.accumulate(gains, axis=-1)  # they fall, but for rounding
    chosen = np.argsort(-gains.T.ravel(), kind="stable")[: total - least * prompts]
    return least + np.bincount(chosen % prompts, minlength=prompts)
