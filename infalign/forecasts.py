"""Forecasts of hit@k for more samples than there are, by a beta-binomial model.

The model says that the probability of a hit differs between prompts as a distribution Beta(a, b), and that the samples
of a prompt are independent. It predicted success at large k better than a line through log-log points, which is the
power law of :mod:`infalign.attacks` (Kazdan et al., arXiv 2510.05197).

The model is an assumption about prompts that were never hit: how many of them would be hit in the end. M samples
of each cannot tell a prompt that is hit once in 100 M samples from one that never is. The model has no share of prompts
that can never be hit. If there is one, forecasts far beyond M are too high. :func:`back_test` shows how good forecasts
from fewer samples would have been.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue
from infalign.estimators import Estimate
from infalign.hits import Hits, count_hits, hit_at_k, pooled_rate
from infalign.intervals import normal_quantile
from infalign.likelihood import Likelihood, mean_hit


@dataclass(frozen=True)
class BetaBinomial:
    """Hit@k if the probability of a hit has the distribution Beta(a, b) over prompts: 1 − B(a, b + k)/B(a, b).

    Args:
        a: First parameter; 0 if no prompt is ever hit.
        b: Second parameter; 0 if every sample is a hit.

    Raises:
        InvalidValue: A parameter is negative or not finite, or both are 0.

    Examples:
        >>> from infalign.forecasts import BetaBinomial
        >>> BetaBinomial(1.0, 1.0)([1, 3, 99]).round(9).tolist()
        [0.5, 0.75, 0.99]
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidValue(name, getattr(self, name), "a finite number of at least 0")
        if not self.a + self.b:
            raise InvalidValue("a", self.a, "a number above 0 if b is 0")

    def __call__(self, k: ArrayLike) -> Floats:
        """Compute hit@k.

        Args:
            k: Numbers of samples, of any shape and size.

        Returns:
            The probabilities, in the shape of ``k``.

        Raises:
            InvalidValue: A number is below 1 or not finite.
        """
        samples = check_finite("k", k)
        if np.any(samples < 1):
            raise InvalidValue("k", float(samples[samples < 1].flat[0]), "numbers of at least 1")
        return mean_hit(np.float64(self.a), np.float64(self.b), samples)


@dataclass(frozen=True)
class BackTest:
    """A forecast from some of the samples, beside what all of them show.

    Args:
        k: Number of samples of an attempt.
        forecast: The forecast of hit@k.
        observed: The unbiased estimate of hit@k from all samples.
    """

    k: int
    forecast: Estimate
    observed: Estimate


def fit_beta_binomial(counts: ArrayLike, samples: ArrayLike) -> BetaBinomial:
    """Fit the model by maximum likelihood.

    If the prompts differ less than by chance, a + b is 1e8: all have the same probability in effect. If each prompt has
    only hits or none, a + b is 1e−6.

    Args:
        counts: (P,) numbers of hits of P prompts.
        samples: (P,) numbers of samples of the same prompts, or one number for all.

    Returns:
        The model.

    Raises:
        InvalidValue: The numbers are not whole or out of their range, or no prompt has two samples.

    Examples:
        >>> from infalign.forecasts import fit_beta_binomial
        >>> model = fit_beta_binomial([0, 0, 0, 1, 0, 3, 0, 9], 16)
        >>> round(model.a, 2), round(model.b, 2)
        (0.19, 1.74)
    """
    return BetaBinomial(*Likelihood.of(counts, samples).fit())


def forecast(hits: Hits, k: int, *, level: float = 0.95) -> Estimate:
    """Forecast the mean hit@k over the population of prompts.

    The interval contains every value of hit@k from which the likelihood falls no more than a chi-squared distribution
    with one degree of freedom allows (profile likelihood). It holds what is unknown of a and b, and not that the model
    may be wrong. If no sample is a hit, it begins at 0, and if all are, it ends at 1.

    From 30 prompts on, an interval of 95% covers the truth in 92% to 98% of cases, if the model is right.

    Args:
        hits: Which of the samples of each of P prompts are hits: booleans, or zeros and ones.
        k: Number of samples of an attempt.
        level: Confidence level of the interval.

    Returns:
        The forecast with its interval.

    Raises:
        InvalidValue: ``k`` is below 1, the level is not between 0 and 1, no prompt has two samples, or the hits of a
            prompt are empty, not one-dimensional, or not zeros and ones.

    Examples:
        >>> from infalign.forecasts import forecast
        >>> print(forecast([[0, 0, 0, 0]] * 50, k=8))
        0.000 [0.000, 0.074]
    """
    return _forecast(Likelihood.of(*count_hits(hits)), k, level)


def back_test(hits: Hits, small: int, ks: Sequence[int], *, level: float = 0.95) -> list[BackTest]:
    """Forecast hit@k from the first few samples of each prompt, and compare with what all samples show.

    Args:
        hits: Which of the samples of each of P prompts are hits: booleans, or zeros and ones.
        small: Number of samples of each prompt that the forecasts are made from.
        ks: Numbers of samples of an attempt, up to the number of all samples.
        level: Confidence level of the intervals.

    Returns:
        One comparison for each k. What is observed is NaN if a prompt has fewer than k samples.

    Raises:
        InvalidValue: ``small`` is below 2 or above the number of samples of a prompt, or another argument is refused.

    Examples:
        >>> import numpy as np
        >>> from infalign.forecasts import back_test
        >>> rng = np.random.default_rng(0)
        >>> hits = rng.uniform(size=(200, 128)) < rng.beta(0.3, 6.0, size=(200, 1))
        >>> for row in back_test(hits, 16, [32, 128]):
        ...     print(row.k, row.forecast, row.observed)
        32 0.420 [0.340, 0.503] 0.421 [0.367, 0.476]
        128 0.584 [0.479, 0.689] 0.630 [0.561, 0.694]
    """
    _, samples = count_hits(hits)
    if not 2 <= small <= samples.min():
        raise InvalidValue("small", small, f"a whole number from 2 to {samples.min()}, the fewest samples of a prompt")
    likelihood = Likelihood.of(*count_hits([np.asarray(row)[:small] for row in hits]))
    return [BackTest(k, _forecast(likelihood, k, level), pooled_rate(hit_at_k(hits, k), level=level)) for k in ks]


def _forecast(likelihood: Likelihood, k: int, level: float) -> Estimate:
    fall = normal_quantile(level) ** 2 / 2  # half of the quantile of the chi-squared distribution
    value = float(BetaBinomial(*likelihood.fit())(k))
    low, high = likelihood.interval(k, fall)
    return Estimate(value, min(low, value), max(high, value), level)
