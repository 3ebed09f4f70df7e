"""What M scored samples per prompt say about every n <= M, without drawing again.

A prompt's samples are a one-dimensional array (M may differ between prompts). Estimates are U-statistics: averages
over all sub-samples without replacement, hence unbiased, in O(M log M) by sorting. Where a procedure needs more
samples than there are, the result is NaN. :func:`over_prompts` puts a bootstrap interval over prompts on any of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.calibration import finite
from infalign.errors import InvalidValue
from infalign.procedures import Procedure, WorstOfN

Floats = NDArray[np.float64]
Samples = Sequence[ArrayLike] | NDArray[np.float64]
"""One array of samples per prompt."""


@dataclass(frozen=True)
class Estimate:
    """A figure over prompts, with its bootstrap interval."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def expected_selected(samples: Samples, procedure: Procedure) -> Floats:
    """Expected value of the sample that ``procedure`` selects, per prompt, shape (P,).

    Rewards in, expected reward out; quantiles in, expected quantile out.
    """
    rows = _rows("samples", samples)
    return np.array([np.sort(row) @ _weights(procedure, row.size) for row in rows])


def expected_judged(rewards: Samples, scores: Samples, procedure: Procedure) -> Floats:
    """Expected ``scores`` value of the sample that ``procedure`` selects by ``rewards``, per prompt, shape (P,).

    What an independent judge says of the selection; samples of equal reward share their scores evenly.
    """
    pairs = _pairs("scores", _rows("rewards", rewards), _rows("scores", scores))
    return np.array([_tied_weights(row, procedure) @ score for row, score in pairs])


def win_rate(policy: Samples, reference: Samples, procedure: Procedure) -> Floats:
    """Inference-time win rate, per prompt, shape (P,): the policy's selected reward against the reference's, ties half.

    Exact average over all pairs of sub-samples, one of the policy's rewards and one of the reference's.
    """
    policy_rows, reference_rows = _rows("policy", policy), _rows("reference", reference)
    _one_each(len(policy_rows), len(reference_rows))
    return np.array([_duel(ours, theirs, procedure) for ours, theirs in zip(policy_rows, reference_rows, strict=True)])


def judged_win_rate(
    policy: Samples, policy_scores: Samples, reference: Samples, reference_scores: Samples, procedure: Procedure
) -> Floats:
    """How often an independent judge prefers the policy's selected sample, per prompt, shape (P,), its ties half.

    Both sides select by reward, as when serving, and are compared by ``scores``.
    """
    ours = _pairs("policy_scores", _rows("policy", policy), _rows("policy_scores", policy_scores))
    theirs = _pairs("reference_scores", _rows("reference", reference), _rows("reference_scores", reference_scores))
    _one_each(len(ours), len(theirs))
    return np.array([_judged_duel(*us, *them, procedure) for us, them in zip(ours, theirs, strict=True)])


def attack_success(safety: Samples, threshold: float, n: int) -> Floats:
    """Probability that the worst of ``n`` samples is below ``threshold``, per prompt, shape (P,).

    1 − C(M − c, n) / C(M, n) with c samples below, the unbiased estimate known as pass@k (Chen et al.,
    arXiv 2107.03374). ``safety`` grows with safety; give the negative of a reward that scores harm.
    """
    failed = [np.asarray(row) >= threshold for row in _rows("safety", safety)]
    return 1 - expected_selected(failed, WorstOfN(n))


@dataclass(frozen=True)
class PowerLaw:
    """−log ASR(n) = a n^−b (Hughes et al., Best-of-N jailbreaking, arXiv 2412.03556)."""

    a: float
    b: float

    def __call__(self, n: ArrayLike) -> Floats:
        """Attack success rate at ``n``, beyond the samples too."""
        return np.asarray(np.exp(-self.a * np.asarray(n, dtype=np.float64) ** -self.b))


def fit_power_law(n: ArrayLike, success: ArrayLike) -> PowerLaw:
    """Least squares on log(−log ASR) against log n, over the points with ASR strictly between 0 and 1.

    Raises:
        InvalidValue: fewer than two such points.
    """
    n, success = np.asarray(n, dtype=np.float64), np.asarray(success, dtype=np.float64)
    inside = (success > 0) & (success < 1)
    if inside.sum() < 2:
        raise InvalidValue("success", success.tolist(), "at least two rates strictly between 0 and 1")
    slope, intercept = np.polyfit(np.log(n[inside]), np.log(-np.log(success[inside])), 1)
    return PowerLaw(math.exp(intercept), -float(slope))


def extrapolate_attack_success(
    safety: Samples, threshold: float, n: Sequence[int], beyond: int, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean attack success rate at ``beyond`` samples by the power law fitted at every ``n`` that the samples allow."""
    rates = np.stack([attack_success(safety, threshold, count) for count in n], axis=1)

    def extrapolated(prompts: Floats) -> float:
        return float(fit_power_law(n, prompts.mean(axis=0))(beyond))

    return over_prompts(rates, extrapolated, level=level, seed=seed)


def kl(policy_log_probs: Samples, reference_log_probs: Samples) -> Floats:
    """Estimate of KL(π‖π_ref) in nats per response, per prompt, shape (P,), from the policy's own responses.

    Mean log-ratio of whole responses: unbiased, and may be negative by chance.
    """
    return np.array([np.mean(ratio) for ratio in _log_ratios(policy_log_probs, reference_log_probs)])


def kl_nonnegative(policy_log_probs: Samples, reference_log_probs: Samples) -> Floats:
    """The same with a control variate: mean of e^{−d} − 1 + d for log-ratio d, never negative.

    Known as k3 (Schulman, Approximating KL Divergence, 2020). Unbiased too where the policy covers the reference,
    but heavy-tailed where the two are far apart.
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
    """``statistic`` of per-prompt ``values`` with its percentile bootstrap interval over prompts.

    ``values`` has shape (P,) or (P, ...): whole rows are resampled, so that figures of one prompt stay together.
    NaN in, NaN out: a prompt with too few samples is never left out silently.
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


def _tied_weights(row: Floats, procedure: Procedure) -> Floats:
    """Weight of each sample in its given place, tied ones sharing evenly."""
    _, group, sizes = np.unique(row, return_inverse=True, return_counts=True)
    share = np.bincount(np.repeat(np.arange(sizes.size), sizes), _weights(procedure, row.size)) / sizes
    return np.asarray(share[group])


def _duel(ours: Floats, theirs: Floats, procedure: Procedure) -> float:
    ours, theirs = np.sort(ours), np.sort(theirs)
    below = np.concatenate([[0.0], np.cumsum(_weights(procedure, theirs.size))])
    beaten = (below[theirs.searchsorted(ours, "left")] + below[theirs.searchsorted(ours, "right")]) / 2
    return float(_weights(procedure, ours.size) @ beaten)


def _judged_duel(ours: Floats, our_scores: Floats, theirs: Floats, their_scores: Floats, procedure: Procedure) -> float:
    mass = _tied_weights(theirs, procedure)
    order = np.argsort(their_scores)
    below = np.concatenate([[0.0], np.cumsum(mass[order])])
    their_scores = their_scores[order]
    beaten = (
        below[their_scores.searchsorted(our_scores, "left")] + below[their_scores.searchsorted(our_scores, "right")]
    )
    return float(_tied_weights(ours, procedure) @ beaten / 2)


def _one_each(policy: int, reference: int) -> None:
    if policy != reference:
        raise InvalidValue("reference", f"{reference} prompts", f"{policy}, one for each prompt")


def _log_ratios(policy: Samples, reference: Samples) -> list[Floats]:
    pairs = _pairs("reference_log_probs", _rows("policy_log_probs", policy), _rows("reference_log_probs", reference))
    return [ours - theirs for ours, theirs in pairs]


def _rows(name: str, samples: Samples) -> list[Floats]:
    rows = [finite(name, row) for row in samples]
    for row in rows:
        if row.ndim != 1 or not row.size:
            raise InvalidValue(name, row.shape, "for each prompt a one-dimensional array of at least one sample")
    return rows


def _pairs(name: str, first: list[Floats], second: list[Floats]) -> list[tuple[Floats, Floats]]:
    if [row.size for row in first] != [row.size for row in second]:
        raise InvalidValue(name, sum(row.size for row in second), f"{sum(row.size for row in first)}, one per sample")
    return list(zip(first, second, strict=True))
