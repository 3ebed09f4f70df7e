"""Calibration: from a reward to its quantile among the rewards of the reference for the same prompt.

The reference is the model that a policy is aligned from. The quantile of a response y to a prompt x is
C(x, y) = P(r(x, Y) <= r(x, y)) for a response Y of the reference (InfAlign, arXiv 2412.19792, section 4). It is
estimated from the anchors of the prompt, which are the rewards of K responses of the reference to it. A tie counts one
half (mid-rank), which keeps the mean of C at 1/2. A reward beyond all anchors gets the outermost estimate: the
estimate does not extrapolate.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue
from infalign.procedures import Procedure

Scope = Literal["prompt", "global", "predicted"]
"""Where anchors come from: this very prompt, all calibrated prompts together, or a prefix scorer's prediction."""
MEAN_DISTANCE = 0.8687
"""√(π/2) log 2, the mean of Kolmogorov's distribution (Marsaglia, Tsang and Wang, Evaluating Kolmogorov's
distribution, Journal of Statistical Software 8(18), 2003)."""


class Estimator(StrEnum):
    """The formula that turns a mid-rank among K anchors into a quantile.

    The mid-rank r of a reward is the number of anchors below it plus half the number of anchors equal to it. The
    quantile is (r + a) / (K + 2a), the posterior mean under a Beta(a, a) prior. ``rank`` (a = 0) is unbiased but
    reaches 0 and 1. ``jeffreys`` (a = 1/2) never reaches them, so that log C is finite. ``bayes`` (a = 1) has a
    uniform prior.

    Examples:
        >>> from infalign import Estimator
        >>> Estimator("jeffreys").quantile([0, 2, 4], 4).tolist()
        [0.1, 0.5, 0.9]
        >>> Estimator.RANK.quantile([0, 2, 4], 4).tolist()
        [0.0, 0.5, 1.0]
    """

    RANK = "rank"
    JEFFREYS = "jeffreys"
    BAYES = "bayes"

    @property
    def prior(self) -> float:
        """The parameter a of the Beta(a, a) prior."""
        return {Estimator.RANK: 0.0, Estimator.JEFFREYS: 0.5, Estimator.BAYES: 1.0}[self]

    def quantile(self, rank: ArrayLike, samples: int) -> Floats:
        """Estimate quantiles from ranks.

        Args:
            rank: Mid-ranks from 0 to K, of any shape.
            samples: K, the number of anchors.

        Returns:
            (r + a) / (K + 2a), in the shape of ``rank``.
        """
        return np.asarray((np.asarray(rank) + self.prior) / (samples + 2 * self.prior))


def equivalent_anchors(distance: float) -> int:
    """Compute how many anchors of the prompt itself give a calibration as exact as one with a given error.

    The largest error of a quantile by K anchors, Kolmogorov's distance, is 0.8687/√K on average.

    Args:
        distance: Mean largest error of a quantile, above 0.

    Returns:
        K, rounded down, and at least 1.

    Raises:
        InvalidValue: The distance is not above 0.

    Examples:
        >>> from infalign.calibration import equivalent_anchors
        >>> equivalent_anchors(0.1086), equivalent_anchors(0.149)
        (63, 33)
    """
    if not distance > 0:
        raise InvalidValue("distance", distance, "a number above 0")
    return max(1, int((MEAN_DISTANCE / distance) ** 2))


@dataclass(frozen=True)
class Calibration:
    """The anchors of one prompt, from which the quantile of any reward is read.

    Rewards are compared on a grid. Two runtimes agree on a reward only up to float error, and a response that occurs
    twice must tie with itself.

    Args:
        anchors: (K,) rewards of the reference, in any order. They are kept sorted, in units of the resolution.
        scope: ``prompt`` for anchors of this very prompt; ``global`` for anchors pooled over all calibrated prompts,
            whose quantiles are comparable only loosely; ``predicted`` for quantiles of a law that a prefix scorer
            predicts (:meth:`infalign.PrefixScorer.calibration`).
        estimator: How ranks become quantiles.
        resolution: Width of the grid, in rewards.

    Raises:
        InvalidValue: The resolution is not above 0, or the anchors are empty, not finite or not one-dimensional.

    Examples:
        >>> from infalign import Calibration
        >>> calibration = Calibration([0.3, -1.0, 2.5, 0.9])
        >>> calibration.quantile([0.5, 9.0]).tolist()
        [0.5, 0.9]
    """

    anchors: Floats
    scope: Scope = "prompt"
    estimator: Estimator = Estimator.JEFFREYS
    resolution: float = 1e-4

    def __post_init__(self) -> None:
        if not self.resolution > 0:
            raise InvalidValue("resolution", self.resolution, "a number above 0")
        object.__setattr__(self, "anchors", np.sort(self.round_to_grid(self.anchors, "anchors")))
        if self.anchors.ndim != 1 or not self.anchors.size:
            raise InvalidValue("anchors", self.anchors.shape, "one dimension, at least one reward")

    @property
    def samples(self) -> int:
        """K, the number of anchors."""
        return int(self.anchors.size)

    def rank(self, rewards: ArrayLike) -> Floats:
        """Rank rewards among the anchors.

        Args:
            rewards: Rewards of any shape.

        Returns:
            Mid-ranks from 0 to K, in the shape of ``rewards``.

        Raises:
            InvalidValue: A reward is NaN or infinite.
        """
        below, not_above = self.span(rewards)
        return np.asarray((below + not_above) / 2)

    def span(self, rewards: ArrayLike) -> tuple[Floats, Floats]:
        """Count the anchors below each reward, and those not above it. The counts differ where the reward ties.

        Args:
            rewards: Rewards of any shape.

        Returns:
            Both counts, from 0 to K, in the shape of ``rewards``.

        Raises:
            InvalidValue: A reward is NaN or infinite.
        """
        grid = self.round_to_grid(rewards)
        sides = (np.searchsorted(self.anchors, grid, side=side) for side in ("left", "right"))
        below, not_above = (np.asarray(side, np.float64) for side in sides)
        return below, not_above

    def quantile(self, rewards: ArrayLike) -> Floats:
        """Estimate the quantiles of rewards.

        Args:
            rewards: Rewards of any shape.

        Returns:
            C in [0, 1], in the shape of ``rewards``.

        Raises:
            InvalidValue: A reward is NaN or infinite.
        """
        return self.estimator.quantile(self.rank(rewards), self.samples)

    def interval(self, rewards: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """Compute the equal-tailed credible interval of each quantile.

        The posterior is Beta(r + a, K − r + a), with the a of the estimator but at least 1/2.

        Args:
            rewards: Rewards of any shape.
            level: Probability of the interval.

        Returns:
            The lower and upper ends, in the shape of ``rewards``.

        Raises:
            InvalidValue: The level is not between 0 and 1, or a reward is NaN or infinite.
        """
        if not 0 < level < 1:
            raise InvalidValue("level", level, "a number between 0 and 1")
        a = max(self.estimator.prior, 0.5)
        rank = self.rank(rewards)
        posterior = rank + a, self.samples - rank + a
        return np.asarray(betaincinv(*posterior, (1 - level) / 2)), np.asarray(betaincinv(*posterior, (1 + level) / 2))

    def expected_quantile(self, procedure: Procedure) -> float:
        """Compute the mean quantile of the candidate that a procedure selects when the reference is decoded.

        The mean is over anchors and draws. The expected rank of a draw with true quantile u is K u, so only the
        shrinkage of the estimator separates the result from ``procedure.expected_quantile``.

        Args:
            procedure: The decoding procedure.

        Returns:
            The mean estimate, in [0, 1].
        """
        return float(self.estimator.quantile(self.samples * procedure.expected_quantile, self.samples))

    def compress(self, anchors: int) -> "CompressedCalibration":
        """Keep only some of the anchors, evenly spaced in rank and with both ends.

        Args:
            anchors: Largest number of anchors to keep, at least 2.

        Returns:
            A calibration that interpolates ranks between the anchors it keeps.

        Raises:
            InvalidValue: ``anchors`` is below 2, or this calibration is compressed already.
        """
        if anchors < 2:
            raise InvalidValue("anchors", anchors, "a whole number of at least 2")
        distinct, counts = np.unique(self.anchors, return_counts=True)
        not_above = np.cumsum(counts)
        below, middle = not_above - counts, not_above - counts / 2
        subset = np.unique(self.anchors[np.round(np.linspace(0, self.samples - 1, anchors)).astype(int)])
        ranks = middle[np.searchsorted(distinct, subset)]
        line = np.interp(distinct, subset, ranks)  # the full rank jumps at each distinct reward
        error = max(float(np.max(np.abs(line - rank))) for rank in (below, middle, not_above))
        return CompressedCalibration(
            subset * self.resolution,
            self.scope,
            self.estimator,
            self.resolution,
            ranks=ranks,
            total=self.samples,
            error=error / (self.samples + 2 * self.estimator.prior),
        )

    def round_to_grid(self, rewards: ArrayLike, name: str = "rewards") -> Floats:
        """Round rewards to the grid.

        Args:
            rewards: Rewards of any shape.
            name: What the message of a refusal calls them.

        Returns:
            Whole numbers in units of the resolution, as ``anchors`` are kept.

        Raises:
            InvalidValue: A reward is NaN or infinite.
        """
        return np.round(check_finite(name, rewards) / self.resolution)


@dataclass(frozen=True, kw_only=True)
class CompressedCalibration(Calibration):
    """A calibration by K rewards that keeps only p of them as anchors.

    Ranks are interpolated linearly between the anchors and are flat beyond them. :meth:`Calibration.compress` makes
    one.

    Args:
        ranks: (p,) mid-ranks of the anchors among the K rewards.
        total: K, the number of rewards before compression.
        error: Largest difference in quantile from the calibration by all K rewards, over every possible reward.

    Examples:
        >>> import numpy as np
        >>> from infalign import Calibration
        >>> small = Calibration(np.arange(100.0)).compress(5)
        >>> small.samples, small.anchors.size, round(small.error, 4)
        (100, 5, 0.005)
    """

    ranks: Floats
    total: int
    error: float

    @property
    def samples(self) -> int:
        """K, the number of rewards before compression."""
        return self.total

    def rank(self, rewards: ArrayLike) -> Floats:
        """Rank rewards by interpolation between the anchors. See :meth:`Calibration.rank`."""
        return np.asarray(np.interp(self.round_to_grid(rewards), self.anchors, self.ranks))

    def span(self, rewards: ArrayLike) -> tuple[Floats, Floats]:
        """Return the interpolated rank twice: a compressed calibration does not know ties."""
        rank = self.rank(rewards)
        return rank, rank

    def compress(self, anchors: int) -> "CompressedCalibration":
        """Refuse to compress again: the rewards that the error would be measured against are gone.

        Raises:
            InvalidValue: Always.
        """
        raise InvalidValue("anchors", anchors, "nothing here: this calibration is compressed already")
