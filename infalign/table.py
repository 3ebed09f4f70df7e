"""The calibrations of many prompts, each found by the key of its prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from infalign.arrays import Floats, check_finite
from infalign.calibration import Calibration, Estimator
from infalign.errors import InvalidValue


@dataclass(frozen=True)
class CalibrationTable:
    """The anchors of many prompts: K rewards of the reference for each prompt key.

    Args:
        keys: P different prompt keys (:func:`infalign.templates.prompt_key`).
        rewards: (P, K) rewards of the reference, in any order within a row.
        estimator: How ranks become quantiles.
        resolution: Width of the grid that rewards are compared on.

    Raises:
        InvalidValue: The rewards have another shape or are not finite, or a key occurs twice.

    Examples:
        >>> import numpy as np
        >>> from infalign import CalibrationTable
        >>> table = CalibrationTable(("a", "b"), np.array([[0.0, 1.0], [10.0, 20.0]]))
        >>> table.quantile(["a", "b"], [5.0, 5.0]).round(3).tolist()
        [0.833, 0.167]
        >>> table.lookup("unknown").scope
        'global'
    """

    keys: tuple[str, ...]
    rewards: Floats
    estimator: Estimator = Estimator.JEFFREYS
    resolution: float = 1e-4
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rewards = check_finite("rewards", self.rewards)
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
        """Get the calibration of a prompt.

        Args:
            key: The prompt key.

        Returns:
            The calibration by the anchors of the prompt (scope ``prompt``) if the table has them, else
            :attr:`pooled_calibration` (scope ``global``).
        """
        row = self._rows.get(key)
        if row is None:
            return self.pooled_calibration
        return Calibration(self.rewards[row], "prompt", self.estimator, self.resolution)

    def quantile(self, keys: Sequence[str], rewards: ArrayLike) -> Floats:
        """Estimate the quantiles of rewards for several prompts at once.

        A prompt that is not in the table is read from the pooled calibration.

        Args:
            keys: Prompt keys, which may repeat.
            rewards: (len(keys), ...) rewards; row i belongs to the prompt ``keys[i]``.

        Returns:
            C in [0, 1], in the shape of ``rewards``.

        Raises:
            InvalidValue: The number of rows is not that of the keys, or a reward is NaN or infinite.
        """
        rewards = check_finite("rewards", rewards)
        if rewards.shape[:1] != (len(keys),):
            raise InvalidValue("rewards", rewards.shape, f"({len(keys)}, ...): a row per key")
        grid = np.round(rewards / self.resolution)
        quantiles = np.empty(grid.shape)
        for i, key in enumerate(keys):
            if key in self:
                anchors = self._sorted_anchors[self._rows[key]]
                rank = (anchors.searchsorted(grid[i], "left") + anchors.searchsorted(grid[i], "right")) / 2
                quantiles[i] = self.estimator.quantile(rank, self.samples)
            else:
                quantiles[i] = self.pooled_calibration.quantile(rewards[i])
        return quantiles

    @cached_property
    def _sorted_anchors(self) -> Floats:
        return np.sort(np.round(self.rewards / self.resolution), axis=1)

    @cached_property
    def pooled_calibration(self) -> Calibration:
        """The anchors of all prompts together as one calibration (scope ``global``)."""
        return Calibration(self.rewards.ravel(), "global", self.estimator, self.resolution)

    @property
    def tie_rate(self) -> float:
        """The probability that two different anchors of one prompt tie: 0 for continuous rewards, NaN for K = 1."""
        if self.samples < 2:
            return math.nan
        ties = 0.0
        for row in self._sorted_anchors:
            _, counts = np.unique(row, return_counts=True)
            ties += float(np.sum(counts * (counts - 1)))
        return ties / (len(self) * self.samples * (self.samples - 1))
