"""Over-optimisation: the largest N up to which selecting by the reward also serves a judge.

The best of N has an ever higher reward as N grows. But a reward model has errors, and the best of many candidates is
the one that exploits them most. So the score that an independent judge gives to the selected candidate rises at first,
and may fall from some N on (Gao et al., arXiv 2210.10760). For worst-of-n, it falls at first and may rise.

HedgeTune (Khalaf et al., arXiv 2506.19248) finds the N at which the derivative of the expected score is zero. For
best-of-n it is E[r(u) (1/n + log u)], where the selected quantile u has the density n u^(n−1). Here the curve itself is
estimated, for every n at once, by exact averages over all subsets of n of the M candidates of a prompt
(:func:`infalign.estimators.expected_score`). Nothing is drawn again, and ties are exact. Whether a fall is more than
chance is decided over prompts. M candidates say nothing about an N above M.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, Samples, check_samples, expected_score, over_prompts
from infalign.procedures import BestOfN, Procedure, WorstOfN

LEAST_PROMPTS = 20
"""Prompts from which a fall can be established. With fewer, the bootstrap too often finds one that is not there."""
STEPS = 8
"""Values of n between a number and its double, at which curves are computed. Below 8, every n is."""
ERROR = 0.05
"""Probability of a fall being established anywhere on a curve that is flat."""
ROUNDING = 1e-9
"""Standard error below which a difference is rounding alone, as a share of the largest one."""


@dataclass(frozen=True)
class Support:
    """How far a judge supports the selection by the reward.

    A fall is a step for the worse: a lower score under best-of-n, a higher one under worst-of-n.

    Args:
        n: The largest N up to which no fall is established.
        falls: Whether a fall is established beyond ``n``. If not, ``n`` is the number of candidates, and the judge
            supports at least that.
        peak: The N with the best mean score. Where the curve is flat, chance decides.
        scores: The judge's mean score of the selected candidate by N, for powers of two, ``peak`` and ``n``.

    Examples:
        >>> import numpy as np
        >>> from infalign import find_support
        >>> rewards = np.random.default_rng(0).normal(size=(50, 64))
        >>> support = find_support(rewards, scores=rewards)
        >>> support.n, support.falls
        (64, False)
        >>> support = find_support(rewards, scores=rewards - rewards**2)
        >>> support.n, support.falls, support.peak
        (3, True, 3)
    """

    n: int
    falls: bool
    peak: int
    scores: dict[int, Estimate]


def score_curve(rewards: Samples, scores: Samples, procedures: Sequence[Procedure]) -> Floats:
    """Estimate the judge's score of the selected candidate under each of several procedures.

    Args:
        rewards: Rewards of the candidates of each of P prompts. Only their order within a prompt counts, so their
            quantiles do as well. Candidates of equal reward share their scores.
        scores: The judge's scores of the same candidates.
        procedures: G procedures, such as best-of-n for growing n, or best-of-poisson for growing μ.

    Returns:
        (P, G) expected scores. NaN where a procedure draws more candidates than a prompt has.

    Raises:
        InvalidValue: A number is not finite, or rewards and scores differ in number.

    Examples:
        >>> from infalign import BestOfN, score_curve
        >>> score_curve([[0.1, 0.2, 0.3]], [[0.0, 6.0, 3.0]], [BestOfN(1), BestOfN(2), BestOfN(3)]).round(9).tolist()
        [[3.0, 4.0, 3.0]]
    """
    return np.stack([expected_score(rewards, scores, procedure) for procedure in procedures], axis=1)


def find_fall(curve: Floats, resamples: int = 2000, seed: int = 0) -> int | None:
    """Find where the mean of a curve has fallen beyond chance.

    The difference of any two points of the mean curve is measured in units of its standard error over prompts. A fall
    is established if it is larger than what chance makes of a flat curve: than the largest fall between any two points
    in 95% of paired bootstrap resamples of the prompts, each relative to the mean curve. Since the largest of all
    counts, one looks at all points at once without finding more by chance.

    Args:
        curve: (P, G) scores of P prompts at G points.
        resamples: Number of bootstrap resamples.
        seed: Seed of the random numbers.

    Returns:
        The first of the G points that is established to be lower than an earlier one; None if there is none.

    Raises:
        InvalidValue: A score is not finite, or there are fewer than 20 prompts.

    Examples:
        >>> import numpy as np
        >>> from infalign import find_fall
        >>> noise = np.random.default_rng(0).normal(scale=0.1, size=(100, 4))
        >>> find_fall(noise + [0.0, 1.0, 2.0, 1.5]), find_fall(noise + [0.0, 1.0, 2.0, 2.5])
        (3, None)
    """
    curve = check_finite("curve", curve)
    if curve.ndim != 2 or len(curve) < LEAST_PROMPTS:
        raise InvalidValue("curve", curve.shape, f"(prompts, points) with at least {LEAST_PROMPTS} prompts")
    prompts, points = curve.shape
    mean = curve.mean(axis=0)
    earlier, later = np.triu_indices(points, 1)
    errors = np.array([np.std(curve[:, i] - curve[:, j], ddof=1) for i, j in zip(earlier, later, strict=True)])
    errors /= np.sqrt(prompts)
    varies = errors > ROUNDING * max(np.abs(mean).max(), errors.max(initial=0.0))
    earlier, later, errors = earlier[varies], later[varies], errors[varies]
    if not errors.size:
        return None
    shares = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    largest = [((noise[earlier] - noise[later]) / errors).max() for noise in shares @ curve - mean]
    falls = (mean[earlier] - mean[later]) / errors > np.quantile(largest, 1 - ERROR)
    return int(later[falls].min()) if falls.any() else None


def find_support(rewards: Samples, scores: Samples, kind: type[BestOfN] | type[WorstOfN] = BestOfN) -> Support:
    """Find the largest N up to which a judge supports the selection by the reward.

    Args:
        rewards: Rewards of M candidates of each of at least 20 prompts. No N above M is looked at.
        scores: The judge's scores of the same candidates. Higher is better.
        kind: Best-of-n or worst-of-n.

    Returns:
        The largest N, with the scores.

    Raises:
        InvalidValue: A number is not finite, rewards and scores differ in number, or there are too few prompts.

    Examples:
        >>> import numpy as np
        >>> from infalign import WorstOfN, find_support
        >>> rewards = np.random.default_rng(0).normal(size=(50, 16))
        >>> support = find_support(rewards, rewards, WorstOfN)
        >>> support.n, support.falls, support.peak
        (16, False, 16)
    """
    most = min((row.size for row in check_samples("rewards", rewards)), default=0)
    if len(rewards) < LEAST_PROMPTS:
        raise InvalidValue("rewards", f"{len(rewards)} prompts", f"at least {LEAST_PROMPTS}")
    ns = _grid(most)
    curve = score_curve(rewards, scores, [kind(n) for n in ns])
    rising = -curve if kind is WorstOfN else curve
    fall = find_fall(rising)
    n = most if fall is None else ns[fall - 1]
    peak = ns[int(rising.mean(axis=0).argmax())]
    shown = {n, peak} | {n for n in ns if n & (n - 1) == 0}
    return Support(n, fall is not None, peak, {n: over_prompts(curve[:, i]) for i, n in enumerate(ns) if n in shown})


def _grid(most: int) -> list[int]:
    """Values of n from 1 to ``most``, which include all powers of two."""
    steps = {round(2 ** (step / STEPS)) for step in range(STEPS * most.bit_length())}
    return sorted({*(n for n in steps if n < most), most})
