"""Detectors of hits and their errors: what rates would be if the detector made none.

A detector, such as a judge model, misses some hits and raises some false alarms. If its rates of both are known, the
true rate of hits follows from the observed one (Rogan and Gladen, 1978).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.estimators import Estimate
from infalign.hits import Hits, log_miss_curve
from infalign.intervals import normal_quantile, score_interval

HALVINGS = 60
"""Steps of a bisection of [0, 1], after which its ends are the same number."""


@dataclass(frozen=True)
class Detector:
    """How often a detector of hits is right.

    Args:
        sensitivity: Probability that a hit is detected.
        specificity: Probability that a sample that is no hit is not detected as one.
        positives: Number of hits on which the sensitivity was measured; None if it is known exactly.
        negatives: Number of other samples on which the specificity was measured; None if it is known exactly.

    Raises:
        InvalidValue: A rate is not in [0, 1], a number is below 1, or the detector is no better than chance.

    Examples:
        >>> from infalign.detectors import Detector
        >>> round(Detector(sensitivity=0.9, specificity=0.98, positives=200, negatives=500).youden, 9)
        0.88
    """

    sensitivity: float
    specificity: float
    positives: int | None = None
    negatives: int | None = None

    def __post_init__(self) -> None:
        for name in ("sensitivity", "specificity"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidValue(name, getattr(self, name), "a number from 0 to 1")
        for name in ("positives", "negatives"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InvalidValue(name, number, "a whole number of at least 1, or None for a known rate")
        if self.sensitivity + self.specificity <= 1:
            raise InvalidValue("sensitivity", self.sensitivity, f"more than 1 - specificity = {1 - self.specificity:g}")

    @property
    def youden(self) -> float:
        """Youden's index, sensitivity + specificity − 1: the factor by which the detector shrinks differences."""
        return self.sensitivity + self.specificity - 1


def correct_rate(rate: Estimate, detector: Detector) -> Estimate:
    """Correct a rate of hits for the errors of the detector.

    The observed rate is q = p Se + (1 − p)(1 − Sp) for the true rate p, the sensitivity Se and the specificity Sp. So
    p = (q − (1 − Sp)) / (Se + Sp − 1), clipped to [0, 1].

    The interval contains every p at which q − p Se − (1 − p)(1 − Sp) does not differ from 0 by more than chance. The
    interval of this sum is made of those of q, Se and Sp, whose distances to their ends are squared and added (Zou and
    Donner, 2008). Those of Se and Sp are Wilson's, and they have no width if the rates are known exactly. An interval
    of 95% covers the true rate in 94% to 98% of cases from 100 prompts on, and in up to 99% with fewer.

    Only rates of single samples can be corrected like this. Hit@k for k > 1 must be corrected for each prompt, because
    many samples of a prompt give many chances of a false alarm: use :func:`correct_hit_at_k`.

    Args:
        rate: The observed rate of single samples with its interval, as by :func:`infalign.hits.pooled_rate`.
        detector: The detector.

    Returns:
        The true rate with its interval. If all of an interval is 0 or all is 1, the observed rate is one that the
        detector cannot give, and its own rates are wrong for these samples.

    Raises:
        InvalidValue: The observed rate is not in [0, 1].

    Examples:
        >>> from infalign import Estimate
        >>> from infalign.detectors import Detector, correct_rate
        >>> observed = Estimate(0.20, 0.16, 0.25)
        >>> print(correct_rate(observed, Detector(0.9, 0.9)))
        0.125 [0.075, 0.188]
        >>> print(correct_rate(observed, Detector(0.9, 0.9, positives=100, negatives=100)))
        0.125 [0.021, 0.204]
    """
    if not (0 <= rate.value <= 1 or math.isnan(rate.value)):
        raise InvalidValue("rate", rate.value, "a rate from 0 to 1")
    se, sp = detector.sensitivity, detector.specificity
    value = _clip((rate.value - (1 - sp)) / detector.youden)
    if math.isnan(rate.low) or math.isnan(rate.high):
        return Estimate(value, math.nan, math.nan, rate.level)
    quantile = normal_quantile(rate.level)
    se_low, se_high = score_interval(se, detector.positives, quantile) if detector.positives else (se, se)
    sp_low, sp_high = score_interval(sp, detector.negatives, quantile) if detector.negatives else (sp, sp)

    def excess(p: float) -> float:
        """The observed rate less the one that is expected at p."""
        return rate.value - p * se - (1 - p) * (1 - sp)

    def highest(p: float) -> float:
        return excess(p) + math.hypot(rate.high - rate.value, p * (se - se_low), (1 - p) * (sp_high - sp))

    def lowest(p: float) -> float:
        return excess(p) - math.hypot(rate.value - rate.low, p * (se_high - se), (1 - p) * (sp - sp_low))

    high = 1.0 if highest(1.0) >= 0 else _bisect(lambda p: highest(p) >= 0)
    low = 0.0 if lowest(0.0) <= 0 else 1 - _bisect(lambda p: lowest(1 - p) <= 0)
    return Estimate(value, min(low, value), max(high, value), rate.level)


def correct_hit_at_k(hits: Hits, k: int, detector: Detector) -> Floats:
    """Estimate hit@k of each prompt from detected hits, without the errors of the detector.

    A sample is detected as a hit with the probability q, so (1 − p)^k = ((Se − q)/(Se + Sp − 1))^k for the true
    probability p. The power is expanded in 1 − q and 1 − Se, and C(M − c, j) / C(M, j) is unbiased for (1 − q)^j. The
    errors of the detector must be independent of each other, given what is a hit, and its rates are taken as known.

    The estimate of a prompt is unbiased, and may therefore lie outside of [0, 1]. Clip means over prompts and never
    single prompts, which would make the mean biased. Its variance grows with k, as fast as (Se + Sp − 1)^−2k:
    with Se = 0.9 and Sp = 0.95, and M = 32 samples of a prompt that is never hit, the standard deviation is 0.05 at
    k = 1, 0.18 at k = 4, 0.8 at k = 16 and 2.6 at k = 32. Correct only small k, or use many prompts.

    Args:
        hits: Which of the samples of each of P prompts are detected as hits: booleans, or zeros and ones.
        k: Number of samples of an attempt.
        detector: The detector.

    Returns:
        (P,) estimates of hit@k, NaN for a prompt with fewer than k samples. :func:`infalign.over_prompts` gives their
        mean with an interval, which does not include what is unknown of the detector.

    Raises:
        InvalidValue: ``k`` is below 1, or the hits of a prompt are empty, not one-dimensional, or not zeros and ones.

    Examples:
        >>> from infalign.detectors import Detector, correct_hit_at_k
        >>> correct_hit_at_k([[1, 0, 0, 0], [0, 0, 0, 0]], 2, Detector(1.0, 0.9)).round(3).tolist()
        [0.383, -0.235]
    """
    powers = np.arange(1, k + 1)
    log_misses = np.pad(log_miss_curve(hits, powers if k >= 1 else [k]), ((0, 0), (1, 0)))
    j, miss = np.arange(k + 1), 1 - detector.sensitivity
    if miss == 0:
        return np.asarray(1 - np.exp(log_misses[:, k] - k * math.log(detector.youden)))
    log_choose = gammaln(k + 1) - gammaln(j + 1) - gammaln(k - j + 1)
    terms = np.exp(log_choose + (k - j) * math.log(miss) + log_misses - k * math.log(detector.youden))
    return np.asarray(1 - terms @ np.where((k - j) % 2, -1.0, 1.0))


def _clip(rate: float) -> float:
    return rate if math.isnan(rate) else min(max(rate, 0.0), 1.0)


def _bisect(holds: Callable[[float], bool]) -> float:
    """Find the largest number of [0, 1] up to which a condition holds; 0 if it never does."""
    below, above = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below
