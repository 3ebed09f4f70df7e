"""Estimates for every n <= M from M scored samples of each prompt, without drawing again.

The samples of a prompt are a one-dimensional array, whose length M may differ between prompts. The estimates are
U-statistics, which are averages over all sub-samples without replacement. They are unbiased, and sorting computes them
in O(M log M). The estimate is NaN if a procedure draws more candidates than there are samples. :func:`over_prompts`
gives any of them a bootstrap interval over prompts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue
from infalign.procedures import Procedure

Samples = Sequence[ArrayLike] | NDArray[np.float64]
"""One array of samples for each prompt."""


@dataclass(frozen=True)
class Estimate:
    """A figure over prompts with its bootstrap interval.

    Args:
        value: The figure.
        low: Lower end of the interval; NaN for one prompt.
        high: Upper end of the interval; NaN for one prompt.
        level: Confidence level of the interval.

    Examples:
        >>> from infalign import Estimate
        >>> print(Estimate(0.5, 0.25, 0.75))
        0.500 [0.250, 0.750]
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def expected_value(samples: Samples, procedure: Procedure) -> Floats:
    """Estimate the expected value of the sample that a procedure selects.

    Args:
        samples: The samples of each of P prompts: rewards or quantiles, for example.
        procedure: The procedure, which selects by these values.

    Returns:
        (P,) expected values, in the unit of the samples.

    Raises:
        InvalidValue: A sample is not finite, or the samples of a prompt are empty or not one-dimensional.
    """
    rows = check_samples("samples", samples)
    return np.array([np.sort(row) @ _weights(procedure, row.size) for row in rows])


def expected_score(rewards: Samples, scores: Samples, procedure: Procedure) -> Floats:
    """Estimate the expected score, by an independent judge, of the sample that a procedure selects by reward.

    Samples of equal reward share their scores evenly.

    Args:
        rewards: The rewards of the samples of each of P prompts.
        scores: The judge's scores of the same samples.
        procedure: The procedure.

    Returns:
        (P,) expected scores.

    Raises:
        InvalidValue: A number is not finite, or rewards and scores differ in number.
    """
    pairs = _pairs("scores", check_samples("rewards", rewards), check_samples("scores", scores))
    return np.array([_shared_weights(row, procedure) @ score for row, score in pairs])


def win_rate(policy: Samples, reference: Samples, procedure: Procedure) -> Floats:
    """Estimate the inference-time win rate of a policy over the reference, both decoded by a procedure.

    The estimate is the exact average over all pairs of sub-samples, one of the policy and one of the reference. A tie
    counts one half.

    Args:
        policy: The policy's rewards for each of P prompts.
        reference: The reference's rewards for the same prompts.
        procedure: The procedure.

    Returns:
        (P,) win rates.

    Raises:
        InvalidValue: A reward is not finite, or the numbers of prompts differ.
    """
    policy_rows, reference_rows = check_samples("policy", policy), check_samples("reference", reference)
    _check_prompts(len(policy_rows), len(reference_rows))
    return np.array([_duel(ours, theirs, procedure) for ours, theirs in zip(policy_rows, reference_rows, strict=True)])


def judged_win_rate(
    policy: Samples, policy_scores: Samples, reference: Samples, reference_scores: Samples, procedure: Procedure
) -> Floats:
    """Estimate how often an independent judge prefers the answer of a policy to that of the reference.

    Both sides select by reward, as they do when served, and are compared by the judge's scores. Equal scores count one
    half.

    Args:
        policy: The policy's rewards for each of P prompts.
        policy_scores: The judge's scores of the same samples.
        reference: The reference's rewards for the same prompts.
        reference_scores: The judge's scores of the same samples.
        procedure: The procedure.

    Returns:
        (P,) win rates.

    Raises:
        InvalidValue: A number is not finite, or the numbers of prompts or samples differ.
    """
    ours = _pairs("policy_scores", check_samples("policy", policy), check_samples("policy_scores", policy_scores))
    theirs = _pairs(
        "reference_scores", check_samples("reference", reference), check_samples("reference_scores", reference_scores)
    )
    _check_prompts(len(ours), len(theirs))
    return np.array([_score_duel(*us, *them, procedure) for us, them in zip(ours, theirs, strict=True)])


def kl(policy_log_probs: Samples, reference_log_probs: Samples) -> Floats:
    """Estimate KL(π‖π_ref) from responses of the policy π, by the mean log-ratio of whole responses.

    The estimate is unbiased and may be negative by chance.

    Args:
        policy_log_probs: Log-probability of each response under the policy, for each of P prompts.
        reference_log_probs: Log-probability of the same responses under the reference.

    Returns:
        (P,) KL divergences in nats per response.

    Raises:
        InvalidValue: A number is not finite, or the numbers of responses differ.
    """
    return np.array([np.mean(ratio) for ratio in _log_ratios(policy_log_probs, reference_log_probs)])


def kl_nonnegative(policy_log_probs: Samples, reference_log_probs: Samples) -> Floats:
    """Estimate KL(π‖π_ref) with a control variate, by the mean of e^{−d} − 1 + d for the log-ratio d.

    The estimate is never negative and is known as k3 (Schulman, Approximating KL Divergence, 2020). It is unbiased if
    the policy covers the reference, and heavy-tailed if the two are far apart.

    Args:
        policy_log_probs: Log-probability of each response under the policy, for each of P prompts.
        reference_log_probs: Log-probability of the same responses under the reference.

    Returns:
        (P,) KL divergences in nats per response.

    Raises:
        InvalidValue: A number is not finite, or the numbers of responses differ.
    """
    ratios = _log_ratios(policy_log_probs, reference_log_probs)
    return np.array([np.mean(np.expm1(-ratio) + ratio) for ratio in ratios])


def over_prompts(
    values: ArrayLike,
    statistic: Callable[[Floats], float] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Compute a statistic over prompts with its percentile bootstrap interval.

    The bootstrap resamples whole rows, so that the figures of one prompt stay together. The result is NaN if a value
    is NaN: a prompt with too few samples is never left out silently.

    Args:
        values: (P, ...) figures of P prompts.
        statistic: Function from resampled values to one number.
        level: Confidence level of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the random numbers.

    Returns:
        The statistic with its interval, whose ends are NaN for one prompt.

    Raises:
        InvalidValue: The level is not between 0 and 1, or there is no prompt.

    Examples:
        >>> from infalign import over_prompts
        >>> print(over_prompts([0.0, 1.0] * 50))
        0.500 [0.400, 0.600]
    """
    values = np.asarray(values, dtype=np.float64)
    if not 0 < level < 1:
        raise InvalidValue("level", level, "a number between 0 and 1")
    if not len(values):
        raise InvalidValue("values", len(values), "at least one prompt")
    if np.any(np.isnan(values)):
        return Estimate(math.nan, math.nan, math.nan, level)
    value = float(statistic(values))
    if len(values) == 1:
        return Estimate(value, math.nan, math.nan, level)
    from scipy.stats import bootstrap  # half a second to import

    interval = bootstrap(
        (np.arange(len(values)),),
        lambda prompts: statistic(values[prompts]),
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), level)


@lru_cache(maxsize=256)
def _weights(procedure: Procedure, m: int) -> Floats:
    return procedure.order_weights(m)


def _shared_weights(row: Floats, procedure: Procedure) -> Floats:
    """Compute the weight of each sample in its place. Samples of equal reward share evenly."""
    _, group, sizes = np.unique(row, return_inverse=True, return_counts=True)
    share = np.bincount(np.repeat(np.arange(sizes.size), sizes), _weights(procedure, row.size)) / sizes
    return np.asarray(share[group])


def _duel(ours: Floats, theirs: Floats, procedure: Procedure) -> float:
    ours, theirs = np.sort(ours), np.sort(theirs)
    below = np.concatenate([[0.0], np.cumsum(_weights(procedure, theirs.size))])
    wins = (below[theirs.searchsorted(ours, "left")] + below[theirs.searchsorted(ours, "right")]) / 2
    return float(_weights(procedure, ours.size) @ wins)


def _score_duel(ours: Floats, our_scores: Floats, theirs: Floats, their_scores: Floats, procedure: Procedure) -> float:
    mass = _shared_weights(theirs, procedure)
    order = np.argsort(their_scores)
    below = np.concatenate([[0.0], np.cumsum(mass[order])])
    their_scores = their_scores[order]
    twice = below[their_scores.searchsorted(our_scores, "left")] + below[their_scores.searchsorted(our_scores, "right")]
    return float(_shared_weights(ours, procedure) @ twice / 2)


def _check_prompts(policy: int, reference: int) -> None:
    if policy != reference:
        raise InvalidValue("reference", f"{reference} prompts", f"{policy}, one for each prompt")


def _log_ratios(policy: Samples, reference: Samples) -> list[Floats]:
    numerators = check_samples("policy_log_probs", policy)
    denominators = check_samples("reference_log_probs", reference)
    return [ours - theirs for ours, theirs in _pairs("reference_log_probs", numerators, denominators)]


def check_samples(name: str, samples: Samples) -> list[Floats]:
    """Convert the samples of each prompt to floats and check them.

    Args:
        name: What the message of a refusal calls the samples.
        samples: One array of samples for each prompt.

    Returns:
        The one-dimensional arrays.

    Raises:
        InvalidValue: A sample is not finite, or the samples of a prompt are empty or not one-dimensional.
    """
    rows = [check_finite(name, row) for row in samples]
    for row in rows:
        if row.ndim != 1 or not row.size:
            raise InvalidValue(name, row.shape, "for each prompt a one-dimensional array of at least one sample")
    return rows


def _pairs(name: str, first: list[Floats], second: list[Floats]) -> list[tuple[Floats, Floats]]:
    if [row.size for row in first] != [row.size for row in second]:
        raise InvalidValue(name, sum(row.size for row in second), f"{sum(row.size for row in first)}, one per sample")
    return list(zip(first, second, strict=True))
