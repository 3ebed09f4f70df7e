"""Early rejection: which candidates of best-of-n are not worth finishing, and what that costs.

All candidates are drawn side by side. Every few tokens, at a checkpoint, the laws of those that are not finished say
how likely each is to become the best of all. A candidate below a threshold is rejected, and no more tokens are drawn
for it. The threshold is fitted by a replay of stored responses: the highest saving whose loss of quantile is certain
enough to be small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from infalign.quantile_law import Mask, QuantileLaw

THRESHOLDS = tuple(float(value) for value in np.geomspace(0.02, 1.0, 24))
"""Thresholds that are tried, as shares of the probability 1/n that every candidate has before the first token."""


@dataclass(frozen=True)
class Rejection:
    """Rejects candidates that will hardly be the best.

    Args:
        threshold: Least probability of becoming the best that a candidate needs. 0 rejects none.

    Raises:
        InvalidValue: The threshold is not from 0 to 1.

    Examples:
        >>> from infalign import QuantileLaw, Rejection
        >>> law = QuantileLaw([[0.9, 0.1, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.3, 0.3]])
        >>> Rejection(0.05).reject(law).tolist()
        [True, False, False]
        >>> Rejection(0.05).reject(law, best=0.99).tolist()
        [True, True, True]
    """

    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InvalidValue("threshold", self.threshold, "a number from 0 to 1")

    def reject(self, law: QuantileLaw, best: ArrayLike | None = None, pending: Mask | None = None) -> Mask:
        """Decide which candidates to reject.

        Args:
            law: (..., n, B) laws of the candidates.
            best: (...,) highest quantile of the finished candidates, 0 where none is; None if none is finished.
            pending: (..., n) which candidates are still drawn; all if left out.

        Returns:
            (..., n) which candidates are rejected. If none is finished, the likeliest best one is kept.
        """
        finished = np.asarray(0.0 if best is None else best, dtype=np.float64)
        drawn = np.ones(law.probabilities.shape[:-1], dtype=bool) if pending is None else pending
        chances = law.best_probabilities(finished, drawn)
        kept = (chances == chances.max(axis=-1, keepdims=True)) & (finished[..., None] <= 0)
        return np.asarray(drawn & (chances < self.threshold) & ~kept)


@dataclass(frozen=True)
class Rehearsal:
    """Stored responses to P prompts, K to each, with their laws at every checkpoint.

    Args:
        quantiles: (P, K) final quantiles.
        lengths: (P, K) lengths in tokens.
        laws: (P, K, T, B) probabilities of the bins at T checkpoints. Those after the end of a response do not count.
        step: Tokens between two checkpoints. Checkpoint t, from 0, comes after (t + 1) ``step`` tokens.

    Raises:
        InvalidValue: The shapes do not fit each other.

    Examples:
        >>> import numpy as np
        >>> from infalign import Rehearsal, Rejection
        >>> laws = np.array([[[[0.9, 0.1]], [[0.1, 0.9]]]])
        >>> rehearsal = Rehearsal(np.array([[0.2, 0.7]]), np.array([[8, 6]]), laws, step=4)
        >>> loss, saved = rehearsal.run(Rejection(0.2), rehearsal.groups(2))
        >>> float(loss[0]), round(float(saved[0]), 3)
        (0.0, 0.286)
    """

    quantiles: Floats
    lengths: NDArray[np.int_]
    laws: Floats
    step: int

    def __post_init__(self) -> None:
        if self.laws.ndim != 4 or not self.quantiles.shape == self.lengths.shape == self.laws.shape[:2]:
            raise InvalidValue("laws", self.laws.shape, f"(P, K, T, B), with (P, K) {self.quantiles.shape}")

    def groups(self, n: int, repeats: int = 4, seed: int = 0) -> NDArray[np.int_]:
        """Group the responses to each prompt into candidates of best-of-n.

        Args:
            n: Candidates of a group, at most K.
            repeats: How often the K responses are shuffled and cut into groups.
            seed: Seed of the shuffles.

        Returns:
            (P, R, n) numbers of responses, with R = repeats ⌊K/n⌋.

        Raises:
            InvalidValue: There are fewer than n responses.
        """
        prompts, samples = self.quantiles.shape
        if not 1 <= n <= samples:
            raise InvalidValue("n", n, f"a whole number from 1 to {samples}")
        random = np.random.default_rng(seed)
        count = samples // n
        orders = random.permuted(np.tile(np.arange(samples), (prompts, repeats, 1)), axis=-1)
        return np.asarray(orders[..., : count * n].reshape(prompts, repeats * count, n))

    def run(self, rule: Rejection, groups: NDArray[np.int_]) -> tuple[Floats, Floats]:
        """Decode best-of-n with early rejection.

        Args:
            rule: The rule.
            groups: (P, R, n) candidates, from :meth:`groups`.

        Returns:
            (P,) mean loss of each prompt, in quantile of the selected candidate, and (P,) share of the tokens saved.
        """
        rows = np.arange(len(groups))[:, None, None]
        quantiles, lengths = self.quantiles[rows, groups], self.lengths[rows, groups]
        laws = self.laws[rows, groups]
        alive, drawn = np.ones(groups.shape, dtype=bool), lengths.copy()
        for checkpoint in range(self.laws.shape[2]):
            tokens = (checkpoint + 1) * self.step
            pending = alive & (lengths > tokens)
            if not pending.any():
                break
            best = np.max(np.where(alive & ~pending, quantiles, 0.0), axis=-1)
            rejected = rule.reject(QuantileLaw(laws[..., checkpoint, :]), best, pending)
            drawn[rejected] = tokens
            alive &= ~rejected
        loss = quantiles.max(axis=-1) - np.max(np.where(alive, quantiles, -np.inf), axis=-1)
        saved = 1 - drawn.sum(axis=(1, 2)) / np.maximum(lengths.sum(axis=(1, 2)), 1)
        return np.asarray(loss.mean(axis=1)), np.asarray(saved)


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


def fit_rejection(
    rehearsal: Rehearsal, n: int, limit: float, thresholds: Sequence[float] = THRESHOLDS
) -> FittedRejection:
    """Choose the highest threshold whose loss is at most a limit.

    The upper end of the interval of the loss over prompts must be within the limit, not only its value. With one
    prompt there is no interval, and nothing is rejected.

    Args:
        rehearsal: Stored responses, which the scorer has not learnt from.
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
    groups = rehearsal.groups(n)
    chosen = FittedRejection(Rejection(0.0), Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0))
    for share in thresholds:
        rule = Rejection(share / n)
        losses, saved = rehearsal.run(rule, groups)
        loss = over_prompts(losses)
        if not loss.high <= limit:
            break
        chosen = FittedRejection(rule, loss, over_prompts(saved))
    return chosen
