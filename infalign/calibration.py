"""Calibration: from a reward to its quantile among the reference's rewards for the same prompt.

C(x, y) = P(r(x, Y) <= r(x, y)) for Y drawn from the reference (InfAlign, arXiv 2412.19792, section 4), estimated
from K reference rewards. Ties count one half (mid-rank), which keeps the mean of C at 1/2. A reward beyond every
anchor gets the outermost estimate: nothing is extrapolated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from infalign.errors import InvalidValue
from infalign.procedures import Procedure

Floats = NDArray[np.float64]
Scope = Literal["prompt", "global"]


class Estimator(StrEnum):
    """How a mid-rank r among K anchors becomes a quantile: (r + a) / (K + 2a), the posterior mean under Beta(a, a).

    ``rank`` (a = 0) is unbiased but reaches 0 and 1; ``jeffreys`` (a = 1/2) never does, so that log(C) is
    finite; ``bayes`` (a = 1) has a uniform prior.
    """

    RANK = "rank"
    JEFFREYS = "jeffreys"
    BAYES = "bayes"

    @property
    def prior(self) -> float:
        """The a of Beta(a, a)."""
        return {Estimator.RANK: 0.0, Estimator.JEFFREYS: 0.5, Estimator.BAYES: 1.0}[self]

    def quantile(self, rank: ArrayLike, samples: int) -> Floats:
        """(r + a) / (K + 2a) of ranks 0..K = ``samples``, same shape."""
        return np.asarray((np.asarray(rank) + self.prior) / (samples + 2 * self.prior))


@dataclass(frozen=True)
class Calibration:
    """The sorted reference rewards (anchors) that quantiles are read from.

    ``scope`` says whose they are: ``prompt`` (drawn for this very prompt) or ``global`` (pooled over all calibrated
    prompts, comparable only loosely). ``resolution`` is the grid rewards are compared on: two runtimes agree on
    a reward only up to float error, and a repeated answer must tie with itself.
    """

    anchors: Floats
    scope: Scope = "prompt"
    estimator: Estimator = Estimator.JEFFREYS
    resolution: float = 1e-4

    def __post_init__(self) -> None:
        if not self.resolution > 0:
            raise InvalidValue("resolution", self.resolution, "a number above 0")
        object.__setattr__(self, "anchors", np.sort(self.on_grid(self.anchors, "anchors")))
        if self.anchors.ndim != 1 or not self.anchors.size:
            raise InvalidValue("anchors", self.anchors.shape, "one dimension, at least one reward")

    @property
    def samples(self) -> int:
        """K, the number of anchors."""
        return int(self.anchors.size)

    def rank(self, rewards: ArrayLike) -> Floats:
        """Mid-rank among the anchors, 0..K, same shape as ``rewards``.

        Raises:
            InvalidValue: a reward is NaN or infinite.
        """
        below, upto = self.span(rewards)
        return np.asarray((below + upto) / 2)

    def span(self, rewards: ArrayLike) -> tuple[Floats, Floats]:
        """Anchors below each reward, and anchors that are not above it; they differ where it ties.

        Raises:
            InvalidValue: a reward is NaN or infinite.
        """
        grid = self.on_grid(rewards)
        sides = (np.searchsorted(self.anchors, grid, side=side) for side in ("left", "right"))
        below, upto = (np.asarray(side, np.float64) for side in sides)
        return below, upto

    def quantile(self, rewards: ArrayLike) -> Floats:
        """C in [0, 1], same shape as ``rewards``, by the calibration's estimator."""
        return self.estimator.quantile(self.rank(rewards), self.samples)

    def interval(self, rewards: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """Equal-tailed credible interval of the quantile: Beta(r + a, K − r + a), with a of at least 1/2."""
        if not 0 < level < 1:
            raise InvalidValue("level", level, "a number between 0 and 1")
        a = max(self.estimator.prior, 0.5)
        rank = self.rank(rewards)
        posterior = rank + a, self.samples - rank + a
        return np.asarray(betaincinv(*posterior, (1 - level) / 2)), np.asarray(betaincinv(*posterior, (1 + level) / 2))

    def expected_selected(self, procedure: Procedure) -> float:
        """Mean over anchors and draws of the selected candidate's quantile when the reference is decoded.

        The expected rank of a draw with true quantile u is K u whatever u is, so only the estimator's
        shrinkage separates this from ``procedure.expected_quantile``.
        """
        return float(self.estimator.quantile(self.samples * procedure.expected_quantile, self.samples))

    def compress(self, anchors: int) -> "CompressedCalibration":
        """The same calibration kept as at most ``anchors`` of its rewards, evenly spaced in rank, ends included.

        Raises:
            InvalidValue: ``anchors`` is below 2.
        """
        if anchors < 2:
            raise InvalidValue("anchors", anchors, "a whole number of at least 2")
        distinct, counts = np.unique(self.anchors, return_counts=True)
        upto = np.cumsum(counts)
        below, middle = upto - counts, upto - counts / 2
        kept = np.unique(self.anchors[np.round(np.linspace(0, self.samples - 1, anchors)).astype(int)])
        ranks = middle[np.searchsorted(distinct, kept)]
        line = np.interp(distinct, kept, ranks)  # the full rank jumps at each distinct reward
        error = max(float(np.max(np.abs(line - rank))) for rank in (below, middle, upto))
        return CompressedCalibration(
            kept * self.resolution,
            self.scope,
            self.estimator,
            self.resolution,
            ranks=ranks,
            compressed=self.samples,
            error=error / (self.samples + 2 * self.estimator.prior),
        )

    def on_grid(self, rewards: ArrayLike, name: str = "rewards") -> Floats:
        """Rewards in units of the resolution, rounded; ``anchors`` are kept like this.

        Raises:
            InvalidValue: a reward is NaN or infinite; the message calls them ``name``.
        """
        return np.round(finite(name, rewards) / self.resolution)


@dataclass(frozen=True, kw_only=True)
class CompressedCalibration(Calibration):
    """K rewards kept as p anchors: ranks are interpolated between them, and flat outside."""

    ranks: Floats
    """(p,) mid-ranks of the anchors among the K rewards."""
    compressed: int
    """K."""
    error: float
    """Largest difference in quantile from the calibration by all K rewards, over every possible reward."""

    @property
    def samples(self) -> int:
        """K, the number of rewards that were compressed."""
        return self.compressed

    def rank(self, rewards: ArrayLike) -> Floats:
        return np.asarray(np.interp(self.on_grid(rewards), self.anchors, self.ranks))

    def span(self, rewards: ArrayLike) -> tuple[Floats, Floats]:
        rank = self.rank(rewards)
        return rank, rank

    def compress(self, anchors: int) -> "CompressedCalibration":
        """Refused: the rewards that its error would be measured against are gone."""
        raise InvalidValue("anchors", anchors, "nothing here: this calibration is compressed already")


def finite(name: str, values: ArrayLike) -> Floats:
    """``values`` as floats.

    Raises:
        InvalidValue: one of them is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise InvalidValue(name, float(array[~np.isfinite(array)].flat[0]), "finite numbers")
    return array


@dataclass(frozen=True)
class CalibrationTable:
    """Calibrations of many prompts: K reference rewards for each prompt key.

    Args:
        keys: P prompt keys (:func:`infalign.templates.prompt_key`).
        rewards: (P, K) reference rewards, in any order within a row.
    """

    keys: tuple[str, ...]
    rewards: Floats
    estimator: Estimator = Estimator.JEFFREYS
    resolution: float = 1e-4
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rewards = finite("rewards", self.rewards)
        if rewards.ndim != 2 or len(self.keys) != len(rewards) or not rewards.size:
            raise InvalidValue("rewards", rewards.shape, f"({len(self.keys)}, K) with K of at least 1: a row per key")
        rows = {key: row for row, key in enumerate(self.keys)}
        if len(rows) != len(self.keys):
            raise InvalidValue("keys", len(self.keys) - len(rows), "no repeated key")
        object.__setattr__(self, "rewards", rewards)
        object.__setattr__(self, "_rows", rows)

    @property
    def samples(self) -> int:
        """K, the number of anchors of each prompt."""
        return int(self.rewards.shape[1])

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def lookup(self, key: str) -> Calibration:
        """The prompt's own calibration (scope ``prompt``) where the table knows it, else the pooled one."""
        row = self._rows.get(key)
        if row is None:
            return self.pooled
        return Calibration(self.rewards[row], "prompt", self.estimator, self.resolution)

    def quantile(self, keys: Sequence[str], rewards: ArrayLike) -> Floats:
        """C of ``rewards[i]``, any number of them, among the anchors of the prompt ``keys[i]``; same shape.

        A prompt that the table does not know is read from the pooled calibration.
        """
        rewards = finite("rewards", rewards)
        if rewards.shape[:1] != (len(keys),):
            raise InvalidValue("rewards", rewards.shape, f"({len(keys)}, ...): a row per key")
        grid = np.round(rewards / self.resolution)
        quantiles = np.empty(grid.shape)
        for i, key in enumerate(keys):
            if key in self:
                anchors = self._sorted[self._rows[key]]
                rank = (anchors.searchsorted(grid[i], "left") + anchors.searchsorted(grid[i], "right")) / 2
                quantiles[i] = self.estimator.quantile(rank, self.samples)
            else:
                quantiles[i] = self.pooled.quantile(rewards[i])
        return quantiles

    @cached_property
    def _sorted(self) -> Floats:
        return np.sort(np.round(self.rewards / self.resolution), axis=1)

    @cached_property
    def pooled(self) -> Calibration:
        """All reference rewards of all prompts as one calibration (scope ``global``)."""
        return Calibration(self.rewards.ravel(), "global", self.estimator, self.resolution)

    @property
    def tie_rate(self) -> float:
        """Probability that two different anchors of one prompt tie; 0 for continuous rewards."""
        if self.samples < 2:
            return math.nan
        ties = 0.0
        for row in self._sorted:
            _, counts = np.unique(row, return_counts=True)
            ties += float(np.sum(counts * (counts - 1)))
        return ties / (len(self) * self.samples * (self.samples - 1))
