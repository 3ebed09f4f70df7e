"""Hits: how often at least one of k samples of a prompt meets a criterion, with intervals that do not vanish.

A *hit* is a sample that meets a criterion, such as an attack that succeeds. *Hit@k* is the probability that at least
one of k samples of a prompt is a hit. It is known as pass@k, and as the attack success rate at k.

If no sample is a hit, the bootstrap gives an interval of width zero, as if no attack could ever succeed. The intervals
here do not vanish. They count prompts and not samples, because samples of one prompt resemble each other. How often
they cover the truth is measured by ``benchmarks/coverage.py``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, check_samples
from infalign.intervals import degrees_of_freedom, normal_quantile, score_interval, student_quantile

Hits = Sequence[ArrayLike] | NDArray[Any]
"""For each prompt, a one-dimensional array that says which samples are hits."""


def hit_at_k(hits: Hits, k: int) -> Floats:
    """Estimate the probability that at least one of k samples is a hit.

    With c hits among M samples, the estimate is 1 − C(M − c, k) / C(M, k). It is unbiased (Chen et al., arXiv
    2107.03374).

    Args:
        hits: Which of the samples of each of P prompts are hits: booleans, or zeros and ones.
        k: Number of samples of an attempt.

    Returns:
        (P,) probabilities, NaN for a prompt with fewer than k samples.

    Raises:
        InvalidValue: ``k`` is below 1, or the hits of a prompt are empty, not one-dimensional, or not zeros and ones.

    Examples:
        >>> from infalign.hits import hit_at_k
        >>> hit_at_k([[1, 0, 0, 0], [0, 0, 0, 0]], 2).round(9).tolist()
        [0.5, 0.0]
    """
    return hit_curve(hits, [k])[:, 0]


def hit_curve(hits: Hits, ks: ArrayLike) -> Floats:
    """Estimate hit@k for several k at once.

    Args:
        hits: Which of the samples of each of P prompts are hits: booleans, or zeros and ones.
        ks: (K,) numbers of samples of an attempt.

    Returns:
        (P, K) probabilities, NaN where a prompt has fewer than k samples.

    Raises:
        InvalidValue: A k is below 1, or the hits of a prompt are empty, not one-dimensional, or not zeros and ones.

    Examples:
        >>> from infalign.hits import hit_curve
        >>> hit_curve([[1, 0, 0, 0]], [1, 2, 4, 5]).round(9).tolist()
        [[0.25, 0.5, 1.0, nan]]
    """
    return np.asarray(np.abs(np.expm1(log_miss_curve(hits, ks))))


def log_miss_curve(hits: Hits, ks: ArrayLike) -> Floats:
    """Compute the log of the unbiased estimates C(M − c, k) / C(M, k) that none of k samples is a hit.

    Args:
        hits: Which of the samples of each of P prompts are hits: booleans, or zeros and ones.
        ks: (K,) numbers of samples of an attempt.

    Returns:
        (P, K) logs, −inf where a hit is certain, and NaN where a prompt has fewer than k samples.

    Raises:
        InvalidValue: A k is below 1, or the hits of a prompt are empty, not one-dimensional, or not zeros and ones.
    """
    k = np.asarray(ks, dtype=np.float64)
    if k.ndim != 1 or not np.all((k >= 1) & (k == np.floor(k))):
        raise InvalidValue("k", k.tolist() if k.size != 1 else k.item(), "whole numbers of at least 1")
    counts, samples = count_hits(hits)
    kinds, kind = np.unique(np.stack([samples - counts, samples], axis=1), axis=0, return_inverse=True)
    misses, total = kinds[:, :1].astype(np.float64), kinds[:, 1:].astype(np.float64)
    fall = _log_falling(total, k)
    log = np.where(k > misses, -np.inf, np.minimum(_log_falling(misses, k) - fall, 0))
    return np.asarray(np.where(k > total, np.nan, log)[kind.ravel()])


def count_hits(hits: Hits) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Count the hits and the samples of each prompt.

    Args:
        hits: Which of the samples of each of P prompts are hits: booleans, or zeros and ones.

    Returns:
        (P,) numbers of hits, and (P,) numbers of samples.

    Raises:
        InvalidValue: There is no prompt, or the hits of one are empty, not one-dimensional, or not zeros and ones.
    """
    rows = check_samples("hits", list(hits))
    if not rows:
        raise InvalidValue("hits", 0, "at least one prompt")
    for row in rows:
        other = row[(row != 0) & (row != 1)]
        if other.size:
            raise InvalidValue("hits", other[0].item(), "booleans, or zeros and ones")
    return np.array([int(row.sum()) for row in rows]), np.array([row.size for row in rows])


def wilson(hits: int, samples: int, k: int = 1, *, level: float = 0.95) -> Estimate:
    """Estimate hit@k of one prompt from independent samples, with Wilson's score interval.

    Wilson's interval for the probability p of a hit contains every p from which the share of hits does not differ by
    more than chance (Wilson, 1927). Since hit@k = 1 − (1 − p)^k rises with p, its interval has the ends of that for p,
    transformed. The value is 1 − (1 − c/M)^k, the estimate of maximum likelihood. Unlike :func:`hit_at_k`, it is not
    unbiased, and k may be larger than M.

    Args:
        hits: Number c of hits.
        samples: Number M of samples.
        k: Number of samples of an attempt.
        level: Confidence level of the interval.

    Returns:
        Hit@k with its interval.

    Raises:
        InvalidValue: A number is out of its range.

    Examples:
        >>> from infalign.hits import wilson
        >>> print(wilson(0, 32), wilson(0, 32, k=4))
        0.000 [0.000, 0.107] 0.000 [0.000, 0.365]
    """
    if samples < 1:
        raise InvalidValue("samples", samples, "a whole number of at least 1")
    if not 0 <= hits <= samples:
        raise InvalidValue("hits", hits, f"a whole number from 0 to {samples}, the number of samples")
    if k < 1:
        raise InvalidValue("k", k, "a whole number of at least 1")
    rate = hits / samples
    ends = score_interval(rate, samples, normal_quantile(level))
    value, low, high = (1 - (1 - p) ** k for p in (rate, *ends))
    return Estimate(value, low, high, level)


def pooled_rate(rates: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Compute the mean of rates over prompts, with an interval that does not vanish at 0 and 1.

    It is Wilson's score interval for p(1 − p)/V samples, where V is the variance of the mean rate p. This number is the
    *effective sample size* of survey statistics: how many independent samples would know the mean as well (Korn and
    Graubard, 1998; Franco et al., 2019). The quantile is that of Student's t (Dean and Pagano, 2015). Three rules keep
    the interval from being too narrow:

    - V includes one more prompt, whose rate has the largest possible variance, p(1 − p). So prompts that agree by
      chance do not seem certain.
    - The degrees of freedom count the prompts that carry the rate
      (:func:`infalign.intervals.degrees_of_freedom`). If only a few prompts have a rate other than 0, or other than 1,
      the variance is hardly known.
    - No variance of rates is larger than p(1 − p), so the interval is never wider than that for P samples and P − 1
      degrees of freedom. If all rates are 0 or all are 1, it is this one.

    An interval of 95% covers the mean of the population of prompts in 94% to 98% of cases, from 30 prompts on. It
    covers more often if hits are very rare, such as one in 1000 samples, and less often (in 92% of cases) if the mean
    rate is above 0.98 or below 0.02 because of a handful of prompts.

    Args:
        rates: (P,) rates of P prompts in [0, 1], such as :func:`hit_at_k`.
        level: Confidence level of the interval.

    Returns:
        The mean with its interval, whose ends are NaN for one prompt. All is NaN if a rate is NaN: a prompt with too
        few samples is never left out silently.

    Raises:
        InvalidValue: The level is not between 0 and 1, there is no prompt, or a rate is not in [0, 1].

    Examples:
        >>> from infalign.hits import pooled_rate
        >>> print(pooled_rate([0.0] * 100), pooled_rate([0.0, 0.1, 0.5, 0.2] * 25))
        0.000 [0.000, 0.038] 0.200 [0.165, 0.241]
    """
    array = _check_rates("rates", rates)
    prompts, mean = array.size, float(array.mean())
    quantile = student_quantile(level, prompts - 1)
    if math.isnan(mean) or prompts == 1:
        return Estimate(mean, math.nan, math.nan, level)
    widest = score_interval(mean, prompts, quantile)
    largest = mean * (1 - mean)
    variance = (float(np.sum((array - mean) ** 2)) + largest) / prompts**2
    if variance == 0:
        return Estimate(mean, *widest, level)
    freedom = min(degrees_of_freedom(array), degrees_of_freedom(1 - array))
    low, high = score_interval(mean, largest / variance, student_quantile(level, freedom))
    return Estimate(mean, max(low, widest[0]), min(high, widest[1]), level)


def paired_difference(first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Compute the mean difference of two rates of each prompt, with an interval that does not vanish.

    It is the adjusted Wald interval of Agresti and Min (2005): two prompts are added, one at 0, and one half at each of
    plus and minus 1. If the rates are zeros and ones, this is their method. Where differences are smaller, an interval
    is often narrower whose last prompt is at plus and minus the largest difference that was seen, and whose degrees of
    freedom count the prompts that differ (:func:`infalign.intervals.degrees_of_freedom`). The ends are those of the
    narrower one. The quantiles are those of Student's t.

    From 30 prompts on, an interval of 95% covers the mean difference of the population of prompts in 94% to 98% of
    cases, and in more if differences are very rare. It covers less often if a handful of prompts carries the
    difference: in some 90% of cases if five of 30 prompts do, and in 75% if one of them does.

    Args:
        first: (P,) rates of P prompts in [0, 1].
        second: (P,) rates of the same prompts, which are subtracted.
        level: Confidence level of the interval.

    Returns:
        The plain mean of the differences with the interval, whose ends are NaN for one prompt. All is NaN if a rate is.

    Raises:
        InvalidValue: The level is not between 0 and 1, there is no prompt, a rate is not in [0, 1], or the numbers of
            prompts differ.

    Examples:
        >>> from infalign.hits import paired_difference
        >>> print(paired_difference([0.0] * 100, [0.0] * 100), paired_difference([0.5, 0.7] * 20, [0.5, 0.4] * 20))
        0.000 [-0.019, 0.019] 0.150 [0.094, 0.192]
    """
    ours, theirs = _check_rates("first", first), _check_rates("second", second)
    if ours.size != theirs.size:
        raise InvalidValue("second", f"{theirs.size} prompts", f"{ours.size}, one for each prompt")
    difference = ours - theirs
    prompts, mean = difference.size, float(difference.mean())
    quantile = student_quantile(level, prompts - 1)
    if math.isnan(mean) or prompts == 1:
        return Estimate(mean, math.nan, math.nan, level)
    sizes = np.abs(difference)
    centre, squares = float(difference.sum()) / (prompts + 2), float(difference @ difference)

    def half(size: float, quantile: float) -> float:
        return quantile * math.sqrt((squares + size**2) / (prompts + 2) - centre**2) / math.sqrt(prompts + 2)

    own = student_quantile(level, degrees_of_freedom(sizes))
    width = min(half(1.0, quantile), half(float(sizes.max()) or 1.0, own))
    return Estimate(mean, min(max(centre - width, -1.0), mean), max(min(centre + width, 1.0), mean), level)


def _check_rates(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InvalidValue(name, array.shape, "a one-dimensional array of at least one prompt")
    outside = array[(array < 0) | (array > 1)]
    if outside.size:
        raise InvalidValue(name, outside[0].item(), "numbers from 0 to 1")
    return array


def _log_falling(n: Floats, k: Floats) -> Floats:
    """Compute log n(n − 1)…(n − k + 1), for k up to n."""
    return np.asarray(gammaln(n + 1) - gammaln(np.maximum(n - k, 0) + 1))
