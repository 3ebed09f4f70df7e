"""What a quantile among the anchors of all prompts says about the quantile among those of the prompt itself.

A prompt without anchors of its own is read from the pooled anchors of all calibrated prompts. Prompts differ: a
reward that is high among all prompts may be ordinary for an easy one. So a pooled quantile of 0.95 may well be 0.8 by
the prompt's own anchors. The calibrated prompts show how often: each of their anchors has both quantiles.
"""

from dataclasses import dataclass

import numpy as np

from infalign.arrays import Floats
from infalign.calibration import Calibration, Estimator
from infalign.combination import Combination
from infalign.errors import InvalidValue
from infalign.procedures import BestOfN
from infalign.stopping import Target

BAND = 0.02
"""Anchors count whose pooled quantile differs by at most this from the candidate's."""
MIN_ANCHORS = 64
"""If the band has fewer anchors, so many of the nearest count (all, if there are fewer)."""
MAX_PROMPTS = 4096
"""With more calibrated prompts, so many of them are used, evenly spaced."""


@dataclass(frozen=True)
class PooledQuantiles:
    """Both quantiles of each anchor of the calibrated prompts.

    Args:
        pooled: (A,) quantiles among the anchors of all prompts, in rising order.
        own: (A,) quantiles among the other K − 1 anchors of the same prompt.

    Raises:
        InvalidValue: The shapes differ, or there are no anchors.

    Examples:
        >>> import numpy as np
        >>> from infalign import BestOfN, CalibrationTable, Combination, PooledQuantiles, Target
        >>> table = CalibrationTable(("easy", "hard"), np.stack([np.arange(200.0) + 100, np.arange(200.0)]))
        >>> pooled = PooledQuantiles.of(Combination((table,)))
        >>> pooled.miss_probability(0.9, Target(BestOfN(8), 0.97))  # only answers to the easy prompt are up there
        1.0
    """

    pooled: Floats
    own: Floats

    def __post_init__(self) -> None:
        if self.pooled.ndim != 1 or self.pooled.shape != self.own.shape or not self.pooled.size:
            raise InvalidValue("own", self.own.shape, f"one quantile for each of the {self.pooled.shape} anchors")

    @classmethod
    def of(cls, combination: Combination) -> "PooledQuantiles":
        """Compute both quantiles of each anchor.

        Args:
            combination: The calibrations of all prompts.

        Returns:
            The quantiles. For K = 1, every own quantile is 1/2.
        """
        table = combination.table
        rewards = table.rewards
        pooled_rewards = rewards if combination.models == 1 else combination.pooled_rewards.reshape(rewards.shape)
        rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), MAX_PROMPTS)).round().astype(int))
        pooled = table.pooled_calibration.quantile(pooled_rewards[rows]).ravel()
        own = np.concatenate([_own_quantiles(table.lookup(table.keys[row]), rewards[row]) for row in rows])
        order = np.argsort(pooled, kind="stable")
        return cls(pooled[order], own[order])

    def miss_probability(self, quantile: float, rule: Target) -> float:
        """Compute the probability that a candidate misses a target by the anchors of its own prompt.

        Args:
            quantile: The pooled quantile of the candidate.
            rule: The target, a quantile among the prompt's own anchors.

        Returns:
            The share of the anchors near ``quantile`` whose own quantile misses the target.
        """
        own = self._near(quantile)
        misses = own < rule.quantile if isinstance(rule.procedure, BestOfN) else own > rule.quantile
        return float(np.mean(misses))

    def _near(self, quantile: float) -> Floats:
        """Return the own quantiles of the anchors near a pooled quantile."""
        low, high = np.searchsorted(self.pooled, [quantile - BAND, quantile + BAND])
        if high - low >= min(MIN_ANCHORS, self.pooled.size):
            return self.own[low:high]
        return self.own[np.argsort(np.abs(self.pooled - quantile), kind="stable")[:MIN_ANCHORS]]


def _own_quantiles(calibration: Calibration, rewards: Floats) -> Floats:
    """Compute the quantile of each anchor among the others of its prompt."""
    estimator = Estimator.JEFFREYS if calibration.samples == 1 else calibration.estimator
    # Among all K anchors, each one ties with itself, which counts one half.
    return estimator.quantile(calibration.rank(rewards) - 0.5, calibration.samples - 1)
