"""Several reward models as one reward, on the quantile scale.

Rewards of different models have no common unit, quantiles have. With w_i the weights and C_i the quantile of model
i's reward among its K reference rewards for the prompt, the combined reward is R = Σ w_i C_i / Σ w_i. R is then
calibrated like any reward, among the R of the K references. C_i is the mid-rank over K, for a response that is one
of the references too: it counts one half for itself, so that C_i is (its rank among the other K − 1, plus ½) / K.
docs/method.md, section 1, says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.calibration import Calibration, CalibrationTable, Estimator, finite
from infalign.errors import InvalidValue

Floats = NDArray[np.float64]
RESOLUTION = 1e-9
"""Grid that combined rewards are compared on: equal sums of ranks may differ in their last bits."""


@dataclass(frozen=True)
class Combination:
    """The reference rewards of M models, and what each model weighs.

    Of one model the combined reward is its raw reward, and ``table`` is its own.

    Args:
        tables: one for each model, of the same prompts in the same order; column k of each is the same response.
        weights: M positive numbers; only their ratios count.
    """

    tables: tuple[CalibrationTable, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        weights = finite("weights", self.weights)
        if not self.tables or weights.shape != (len(self.tables),) or not np.all(weights > 0):
            raise InvalidValue("weights", self.weights, f"{len(self.tables) or 1} numbers above 0, one for each model")
        first = self.tables[0]
        for table in self.tables[1:]:
            if table.keys != first.keys or table.samples != first.samples:
                raise InvalidValue(
                    "tables", f"{len(table)} x {table.samples}", f"the {len(first)} x {first.samples} of the first"
                )

    @property
    def models(self) -> int:
        """M."""
        return len(self.tables)

    def combine(self, keys: Sequence[str], rewards: ArrayLike) -> Floats:
        """R of ``rewards[i]``, of shape (..., M), for the prompt ``keys[i]``; shape (len(keys), ...).

        A prompt that the tables do not know is read from the pooled rewards.
        """
        rewards = finite("rewards", rewards)
        if rewards.ndim < 2 or rewards.shape[-1] != self.models or len(rewards) != len(keys):
            raise InvalidValue("rewards", rewards.shape, f"({len(keys)}, ..., {self.models}): a row per key")
        if self.models == 1:
            return np.asarray(rewards[..., 0])
        return self._mean([table.quantile(keys, rewards[..., i]) for i, table in enumerate(self._ranked)])

    @cached_property
    def table(self) -> CalibrationTable:
        """The combined rewards of the references: what R is calibrated by."""
        first = self.tables[0]
        if self.models == 1:
            return first
        rewards = np.stack([table.rewards for table in self.tables], axis=-1)
        return CombinedTable(first.keys, self.combine(first.keys, rewards), first.estimator, RESOLUTION, origin=self)

    @property
    def pooled(self) -> Floats:
        """R of all references of all prompts, each C_i among the pooled rewards of model i."""
        return self._mean([table.pooled.quantile(table.rewards.ravel()) for table in self._ranked])

    @cached_property
    def _ranked(self) -> tuple[CalibrationTable, ...]:
        return tuple(replace(table, estimator=Estimator.RANK) for table in self.tables)

    def _mean(self, quantiles: Sequence[Floats]) -> Floats:
        total = sum(weight * values for weight, values in zip(self.weights, quantiles, strict=True))
        return np.asarray(total / sum(self.weights))


@dataclass(frozen=True)
class CombinedTable(CalibrationTable):
    """A table of combined rewards, whose pooled rewards are combined anew: R depends on what C_i is read from."""

    origin: Combination = field(kw_only=True, repr=False, compare=False)

    @cached_property
    def pooled(self) -> Calibration:
        """All references of all prompts as one calibration (scope ``global``)."""
        return Calibration(self.origin.pooled, "global", self.estimator, self.resolution)
