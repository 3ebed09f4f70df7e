"""Fits the rules of early rejection to stored responses, which the scorer has not learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from infalign.quantile_law import QuantileLaw
from infalign.rehearsal import Rehearsal
from infalign.rejection import Rejection

THRESHOLDS = tuple(float(value) for value in np.geomspace(0.02, 1.0, 24))
"""Thresholds that are tried, as shares of the probability 1/n that every candidate has before the first token."""
SHARES = tuple(float(value) for value in np.geomspace(0.05, 1.0, 16))
"""Shares that are tried, of the probability with which a fresh candidate reaches a target."""
TARGETS = (0.8, 0.9, 0.95)
"""Targets that a share is fitted for."""


@dataclass(frozen=True)
class FittedRejection:
    """A rule for best-of-n, and what it did in a rehearsal.

    Args:
        rule: The rule.
        loss: Mean loss in quantile of the selected candidate.
        saved: Share of the tokens that were not drawn.
    """

    rule: Rejection
    loss: Estimate
    saved: Estimate


@dataclass(frozen=True)
class FittedShare:
    """How likely a candidate must be to reach a target, and what that did in a rehearsal.

    Args:
        share: Least probability of reaching the target, as a share of that of a fresh candidate.
        tokens: Tokens until a candidate reaches the target, as a share of those without rejection.
    """

    share: float
    tokens: Estimate


def fit_rejection(
    rehearsal: Rehearsal, n: int, limit: float, thresholds: Sequence[float] = THRESHOLDS
) -> FittedRejection:
    """Choose the highest threshold whose loss is at most a limit.

    The upper end of the interval of the loss over prompts must be within the limit, not only its value. With one
    prompt there is no interval, and nothing is rejected.

    Args:
        rehearsal: (P, K) stored responses.
        n: Number of candidates.
        limit: Largest loss in quantile of the selected candidate.
        thresholds: Thresholds that are tried, as shares of 1/n, in increasing order.

    Returns:
        The rule with its measured loss and saving.

    Raises:
        InvalidValue: There are fewer than n responses to a prompt.

    Examples:
        >>> import numpy as np
        >>> from infalign import Rehearsal, fit_rejection
        >>> quantiles = (np.tile(np.arange(8), (30, 1)) + 0.5) / 8
        >>> laws = np.repeat(np.eye(8)[None, :, None], 30, axis=0)
        >>> known = Rehearsal(quantiles, np.full((30, 8), 20), laws, step=5)
        >>> fitted = fit_rejection(known, n=4, limit=0.002)
        >>> fitted.loss.value, round(fitted.saved.value, 4)
        (0.0, 0.5625)
    """
    groups = rehearsal.group(n)
    best, whole = groups.quantiles.max(axis=-1), np.maximum(groups.lengths.sum(axis=(1, 2)), 1)
    chosen = FittedRejection(Rejection(0.0), Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0))
    for share in thresholds:
        rule = Rejection(share / n)
        run = groups.run(rule)
        loss = over_prompts((best - run.quantile).mean(axis=1))
        if not loss.high <= limit:
            break
        chosen = FittedRejection(rule, loss, over_prompts(1 - run.tokens.sum(axis=1) / whole))
    return chosen


def fit_share(
    rehearsal: Rehearsal, targets: Sequence[float] = TARGETS, shares: Sequence[float] = SHARES
) -> FittedShare:
    """Choose the share with which the fewest tokens are drawn until a candidate reaches a target.

    Candidates are drawn one after another until one reaches the target. By Wald's equation that takes E[tokens of a
    candidate] / P(a candidate reaches it) tokens on average. Rejection makes both smaller. One share is chosen for all
    targets: the one whose interval over prompts, of the geometric mean over targets of the tokens relative to those
    without rejection, has the lowest upper end. If no upper end is below 1, or with one prompt, nothing is rejected.
    Targets that no response reaches do not count.

    Args:
        rehearsal: (P, K) stored responses.
        targets: Quantiles to reach.
        shares: Shares that are tried.

    Returns:
        The share with its measured saving.

    Raises:
        InvalidValue: A target is not between 0 and 1.

    Examples:
        >>> import numpy as np
        >>> from infalign import Rehearsal, fit_share
        >>> quantiles = (np.tile(np.arange(8), (30, 1)) + 0.5) / 8
        >>> laws = np.repeat(np.eye(8)[None, :, None], 30, axis=0)
        >>> known = Rehearsal(quantiles, np.full((30, 8), 20), laws, step=5)
        >>> round(fit_share(known, targets=[0.75]).tokens.value, 4)
        0.4375
    """
    if not all(0 < target < 1 for target in targets):
        raise InvalidValue("targets", list(targets), "quantiles between 0 and 1")
    chosen = FittedShare(0.0, Estimate(1.0, 1.0, 1.0))
    reached = [target for target in targets if np.any(rehearsal.quantiles > target)]
    for share in shares if reached else ():
        sums = np.stack([_count(rehearsal, target, share * (1 - target)) for target in reached], axis=1)
        tokens = over_prompts(sums, _relative_tokens)
        if tokens.high < chosen.tokens.high:
            chosen = FittedShare(share, tokens)
    return chosen


def _count(rehearsal: Rehearsal, target: float, least: float) -> Floats:
    """For each prompt: tokens drawn and candidates that reach the target, with rejection and without. (P, 4)."""
    ends = (np.arange(rehearsal.laws.shape[-2]) + 1) * rehearsal.step
    lengths, good = rehearsal.lengths, rehearsal.quantiles > target
    hopeless = (QuantileLaw(rehearsal.laws).exceeds(target) < least) & (lengths[..., None] > ends)
    stopped = hopeless.any(axis=-1)
    tokens = np.where(stopped, ends[hopeless.argmax(axis=-1)], lengths)
    return np.stack([each.sum(axis=1) for each in (tokens, good & ~stopped, lengths, good)], axis=1).astype(float)


def _relative_tokens(sums: Floats) -> float:
    """Geometric mean over targets of the tokens until one is reached, relative to those without rejection."""
    tokens, reached, all_tokens, all_reached = sums.sum(axis=0).T
    if not reached.all():
        return 1.0 if not all_reached.all() else np.inf
    return float(np.exp(np.mean(np.log(tokens / reached * all_reached / all_tokens))))
