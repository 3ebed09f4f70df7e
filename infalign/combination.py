"""Several reward models as one reward, on the quantile scale.

Rewards of different models have no common unit, but quantiles have one. Let w_i be the weight of model i, and C_i the
quantile of its reward among its K rewards of the reference for the prompt. The combined reward is
R = Σ w_i C_i / Σ w_i. R is calibrated like any other reward, among the R of the K responses of the reference. C_i is
the mid-rank divided by K. A response of the reference counts one half for itself, so that its C_i is (its rank among
the other K − 1, plus ½) / K. Section 1 of docs/results/theory.md gives the reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from infalign.arrays import Floats, check_finite
from infalign.calibration import Calibration, Estimator
from infalign.errors import InvalidValue
from infalign.table import CalibrationTable

RESOLUTION = 1e-9
"""Grid that combined rewards are compared on: equal sums of ranks may differ in their last bits."""


@dataclass(frozen=True)
class Combination:
    """The reference rewards of M models and the weight of each model.

    With one model, the combined reward is its raw reward, and ``table`` is the table of that model.

    Args:
        tables: One table for each model, with the same prompts in the same order. Column k of every table belongs to
            the same response.
        weights: M positive numbers. Only their ratios count.

    Raises:
        InvalidValue: The weights are not M positive numbers, or the tables do not have the same keys and shape.

    Examples:
        >>> import numpy as np
        >>> from infalign import CalibrationTable, Combination
        >>> helpful = CalibrationTable(("a",), np.array([[0.0, 1.0, 2.0, 3.0]]))
        >>> harmless = CalibrationTable(("a",), np.array([[-30.0, -10.0, -20.0, -40.0]]))
        >>> both = Combination((helpful, harmless), (3.0, 1.0))
        >>> both.combine(["a"], [[2.5, -50.0]]).tolist()
        [0.5625]
    """

    tables: tuple[CalibrationTable, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        weights = check_finite("weights", self.weights)
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
        """M, the number of reward models."""
        return len(self.tables)

    def combine(self, keys: Sequence[str], rewards: ArrayLike) -> Floats:
        """Combine the rewards of all models into one.

        A prompt that is not in the tables is read from the pooled rewards of each model.

        Args:
            keys: Prompt keys.
            rewards: (len(keys), ..., M) raw rewards; row i belongs to the prompt ``keys[i]``.

        Returns:
            R, of shape (len(keys), ...).

        Raises:
            InvalidValue: The shape does not fit the keys and models, or a reward is NaN or infinite.
        """
        rewards = check_finite("rewards", rewards)
        if rewards.ndim < 2 or rewards.shape[-1] != self.models or len(rewards) != len(keys):
            raise InvalidValue("rewards", rewards.shape, f"({len(keys)}, ..., {self.models}): a row per key")
        if self.models == 1:
            return np.asarray(rewards[..., 0])
        return self._mean([table.quantile(keys, rewards[..., i]) for i, table in enumerate(self._rank_tables)])

    @cached_property
    def table(self) -> CalibrationTable:
        """The combined rewards of the reference, which R is calibrated by."""
        first = self.tables[0]
        if self.models == 1:
            return first
        rewards = np.stack([table.rewards for table in self.tables], axis=-1)
        return CombinedTable(first.keys, self.combine(first.keys, rewards), first.estimator, RESOLUTION, origin=self)

    @property
    def pooled_rewards(self) -> Floats:
        """(P K,) R of all responses of the reference, with each C_i read from the pooled rewards of model i."""
        return self._mean([table.pooled_calibration.quantile(table.rewards.ravel()) for table in self._rank_tables])

    @cached_property
    def _rank_tables(self) -> tuple[CalibrationTable, ...]:
        return tuple(replace(table, estimator=Estimator.RANK) for table in self.tables)

    def _mean(self, quantiles: Sequence[Floats]) -> Floats:
        total = sum(weight * values for weight, values in zip(self.weights, quantiles, strict=True))
        return np.asarray(total / sum(self.weights))


@dataclass(frozen=True)
class CombinedTable(CalibrationTable):
    """A table of combined rewards.

    Its pooled rewards are combined anew, because R depends on the anchors that each C_i is read from.

    Args:
        origin: The combination that the rewards come from.
    """

    origin: Combination = field(kw_only=True, repr=False, compare=False)

    @cached_property
    def pooled_calibration(self) -> Calibration:
        """The combined rewards of all prompts together as one calibration (scope ``global``)."""
        return Calibration(self.origin.pooled_rewards, "global", self.estimator, self.resolution)
