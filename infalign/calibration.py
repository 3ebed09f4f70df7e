"""Calibration: from a reward to its quantile among the reference's rewards for the same prompt.

C(x, y) = P(r(x, Y) <= r(x, y)) for Y drawn from the reference (InfAlign, arXiv 2412.19792, eq. 4), estimated
from K reference rewards. Ties count one half (mid-rank), which keeps the mean of C at 1/2. A reward beyond every
anchor gets the outermost estimate: nothing is extrapolated.
"""

import math
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
        object.__setattr__(self, "anchors", np.sort(self._grid("anchors", self.anchors)))
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
        grid = self._grid("rewards", rewards)
        below = np.searchsorted(self.anchors, grid, side="left")
        upto = np.searchsorted(self.anchors, grid, side="right")
        return np.asarray((below + upto) / 2)

    def quantile(self, rewards: ArrayLike) -> Floats:
        """C in [0, 1], same shape as ``rewards``, by the calibration's estimator."""
        a = self.estimator.prior
        return np.asarray((self.rank(rewards) + a) / (self.samples + 2 * a))

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
        a = self.estimator.prior
        return (self.samples * procedure.expected_quantile + a) / (self.samples + 2 * a)

    def _grid(self, name: str, rewards: ArrayLike) -> Floats:
        values = np.asarray(rewards, dtype=np.float64)
        if not np.all(np.isfinite(values)):
            bad = values[~np.isfinite(values)].flat[0]
            raise InvalidValue(name, float(bad), "finite numbers")
        return np.asarray(np.round(values / self.resolution))


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
        rewards = np.asarray(self.rewards, dtype=np.float64)
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

    @cached_property
    def pooled(self) -> Calibration:
        """All reference rewards of all prompts as one calibration (scope ``global``)."""
        return Calibration(self.rewards.ravel(), "global", self.estimator, self.resolution)

    @property
    def tie_rate(self) -> float:
        """Probability that two different anchors of one prompt tie; 0 for continuous rewards."""
        if self.samples < 2:
            return math.nan
        grid = np.sort(np.round(self.rewards / self.resolution), axis=1)
        ties = 0.0
        for row in grid:
            _, counts = np.unique(row, return_counts=True)
            ties += float(np.sum(counts * (counts - 1)))
        return ties / (len(self) * self.samples * (self.samples - 1))
