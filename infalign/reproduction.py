"""A check that a reward model, on this machine, gives the rewards that a bundle was calibrated with.

A calibration keeps a few responses of the reference with the raw reward of each model (``examples.jsonl``). Every
program that runs the models scores these responses again. The scores differ if a model reads other tokens, runs in a
coarser data type, or is another model than at calibration. Its quantiles would then mean nothing.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import expit

from infalign.arrays import Floats
from infalign.errors import BundleMismatch, BundleMissing, RewardMismatch
from infalign.table import CalibrationTable
from infalign.templates import Message

EXAMPLES = "examples.jsonl"
SHIFT = 0.02
"""Largest accepted mean change of a quantile, if every reward were as wrong as the worst."""
PROMPTS, ANCHORS = 256, 64
"""Part of a table that is enough to measure the distances between the rewards of a prompt."""
SMALL = 0.2
"""Differences below this share of the standard deviation of the expected rewards look like rounding."""


class RewardExample(BaseModel):
    """A response of the reference, and the raw reward that each reward model gave it at calibration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[Message, ...] = Field(min_length=1)
    response: str
    rewards: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(description="raw, by the model's name")


@dataclass(frozen=True)
class Reproduction:
    """The rewards that a reward model must reproduce wherever it runs. :meth:`of` makes one.

    Args:
        model: Name of the reward model.
        rewards: (N,) rewards of the examples at calibration.
        tolerance: Largest accepted difference, in rewards.
    """

    model: str
    rewards: Floats
    tolerance: float

    @classmethod
    def of(cls, model: str, rewards: Sequence[float], table: CalibrationTable) -> "Reproduction":
        """Set the tolerance by a calibration.

        A difference as large as the tolerance moves quantiles by :data:`SHIFT` on average: a share 2 SHIFT of all pairs
        of rewards of one prompt, ties included, lies no further apart. The tolerance is at least the grid of the
        calibration.

        Args:
            model: Name of the reward model.
            rewards: (N,) its rewards of the examples at calibration.
            table: Its calibration.

        Returns:
            The rewards with their tolerance.
        """
        rows = np.random.default_rng(0).permuted(table.rewards[:: -(-len(table) // PROMPTS)], axis=1)[:, :ANCHORS]
        first, second = np.triu_indices(rows.shape[1], 1)
        gaps = np.abs(rows[:, first] - rows[:, second])
        shift = float(np.quantile(gaps, 2 * SHIFT)) if gaps.size else 0.0
        return cls(model, np.asarray(rewards, dtype=np.float64), max(table.resolution, shift))

    def compare(self, rewards: Sequence[float], places: Sequence[int]) -> float:
        """Compare rewards on this machine with those at calibration.

        Args:
            rewards: Rewards of some of the examples.
            places: Number of each of these examples, from 0.

        Returns:
            The largest difference.

        Raises:
            RewardMismatch: The largest difference is above the tolerance, or not a number.
        """
        actual, baseline = np.asarray(rewards, dtype=np.float64), self.rewards[list(places)]
        differences = np.abs(actual - baseline)
        worst = int(np.argmax(differences))  # the first that is not a number, if one is
        largest = float(differences[worst])
        if largest <= self.tolerance:
            return largest
        raise RewardMismatch(
            f"the reward model {self.model} does not give the rewards that the bundle was calibrated with. Response "
            f"{places[worst] + 1} of {len(self.rewards)} in calibration/{EXAMPLES} has {actual[worst]:.6g}, expected "
            f"{baseline[worst]:.6g}. The largest difference is {largest:.3g}, accepted {self.tolerance:.2g} "
            f"({_cause(actual, baseline)})"
        )


def save_examples(directory: Path, examples: Iterable[RewardExample]) -> None:
    """Write examples into a file of JSON lines.

    Args:
        directory: Directory of the calibration.
        examples: The examples.
    """
    lines = [example.model_dump_json() + "\n" for example in examples]
    (directory / EXAMPLES).write_text("".join(lines), encoding="utf-8")


def load_examples(directory: Path, models: Collection[str]) -> tuple[RewardExample, ...]:
    """Read the examples that :func:`save_examples` wrote.

    Args:
        directory: Directory of the calibration.
        models: Names of the reward models, each of which must have scored every example.

    Returns:
        The examples, at least one.

    Raises:
        BundleMissing: There is no example.
        BundleMismatch: An example cannot be read, or was scored by other models.
    """
    file = directory / EXAMPLES
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n") if file.is_file() else []
    if not lines:
        raise BundleMissing(f"{file} is missing")
    examples = []
    for number, line in enumerate(lines, 1):
        try:
            example = RewardExample.model_validate_json(line)
        except ValidationError as error:
            raise BundleMismatch(f"{file}, line {number}: not a scored response") from error
        if example.rewards.keys() != set(models):
            scorers = ", ".join(example.rewards) or "no model"
            raise BundleMismatch(f"{file}, line {number}: scored by {scorers}, the calibration by {', '.join(models)}")
        examples.append(example)
    return tuple(examples)


def _cause(actual: Floats, baseline: Floats) -> str:
    """Guess the cause of differences between rewards."""
    if not np.all(np.isfinite(actual)):
        return "not all are numbers, as where float16 overflows"
    if np.allclose(actual, expit(baseline), atol=0.02):
        return "they look like the expected ones after a sigmoid: an activation is applied"
    if np.all(np.abs(actual + baseline) <= SMALL * np.abs(baseline)):
        return "they look like the expected ones with the sign turned"
    if np.abs(actual - baseline).max() <= SMALL * baseline.std():
        return "all differ a little: the model runs in another data type than when it was calibrated"
    return "they differ much: another model, tokenizer or chat template"
