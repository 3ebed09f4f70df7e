"""Whether a reward model, as it runs here, gives the rewards that a bundle was calibrated with.

A calibration keeps a few responses of the reference with the raw reward of each model (``examples.jsonl``). Whoever
runs the models scores them again: a model that reads other tokens, runs in a coarser type or is not the one that
was calibrated gives itself away, and its quantiles would mean nothing.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import expit

from infalign.calibration import CalibrationTable, Floats
from infalign.errors import BundleMismatch, BundleMissing, RewardMismatch
from infalign.templates import Message

EXAMPLES = "examples.jsonl"
SHIFT = 0.02
"""By how much the quantile of a response may move, on average, if all its rewards were as wrong as the worst."""
PROMPTS, ANCHORS = 256, 64
"""As much of a table as is enough to say how far apart the rewards of a prompt are."""
SMALL = 0.2
"""Differences below this share of the standard deviation of the expected rewards look like rounding."""


class RewardExample(BaseModel):
    """A response of the reference, and what each reward model says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[Message, ...] = Field(min_length=1)
    response: str
    rewards: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(description="raw, by the model's name")


@dataclass(frozen=True)
class Reproduction:
    """What one reward model must say of the examples, wherever it runs."""

    model: str
    expected: Floats
    tolerance: float
    """Largest difference that is accepted, in rewards."""

    def compare(self, rewards: Sequence[float], places: Sequence[int]) -> float:
        """The largest difference of ``rewards`` from those of the examples in ``places``.

        Raises:
            RewardMismatch: it is above the tolerance, or not a number.
        """
        given, expected = np.asarray(rewards, dtype=np.float64), self.expected[list(places)]
        differences = np.abs(given - expected)
        worst = int(np.argmax(differences))  # the first that is not a number, if one is
        largest = float(differences[worst])
        if largest <= self.tolerance:
            return largest
        raise RewardMismatch(
            f"the reward model {self.model} does not give the rewards that the bundle was calibrated with. Response "
            f"{places[worst] + 1} of {len(self.expected)} in calibration/{EXAMPLES} has {given[worst]:.6g}, expected "
            f"{expected[worst]:.6g}. The largest difference is {largest:.3g}, accepted {self.tolerance:.2g} "
            f"({_cause(given, expected)})"
        )


def reproduction(model: str, rewards: Sequence[float], table: CalibrationTable) -> Reproduction:
    """What ``model`` must say of the examples, where ``rewards`` are theirs and ``table`` is its calibration.

    The tolerance moves quantiles by :data:`SHIFT` on average: of all pairs of rewards of one prompt, a share of 2 SHIFT
    lies no further apart, ties included. It is at least the calibration's grid.
    """
    rows = np.random.default_rng(0).permuted(table.rewards[:: -(-len(table) // PROMPTS)], axis=1)[:, :ANCHORS]
    first, second = np.triu_indices(rows.shape[1], 1)
    gaps = np.abs(rows[:, first] - rows[:, second])
    moved = float(np.quantile(gaps, 2 * SHIFT)) if gaps.size else 0.0
    return Reproduction(model, np.asarray(rewards, dtype=np.float64), max(table.resolution, moved))


def save_examples(directory: Path, examples: Iterable[RewardExample]) -> None:
    """Write the examples into ``directory``, a line of JSON each."""
    lines = [example.model_dump_json() + "\n" for example in examples]
    (directory / EXAMPLES).write_text("".join(lines), encoding="utf-8")


def load_examples(directory: Path, models: Collection[str]) -> tuple[RewardExample, ...]:
    """Read what :func:`save_examples` wrote, with a reward of each of ``models``.

    Raises:
        BundleMissing: there is no example.
        BundleMismatch: one cannot be read, or was scored by other models.
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
            scored = ", ".join(example.rewards) or "no model"
            raise BundleMismatch(f"{file}, line {number}: scored by {scored}, the calibration by {', '.join(models)}")
        examples.append(example)
    return tuple(examples)


def _cause(given: Floats, expected: Floats) -> str:
    """What the differences look like."""
    if not np.all(np.isfinite(given)):
        return "not all are numbers, as where float16 overflows"
    if np.allclose(given, expit(expected), atol=0.02):
        return "they look like the expected ones after a sigmoid: an activation is applied"
    if np.all(np.abs(given + expected) <= SMALL * np.abs(expected)):
        return "they look like the expected ones with the sign turned"
    if np.abs(given - expected).max() <= SMALL * expected.std():
        return "all differ a little: the model runs in another data type than when it was calibrated"
    return "they differ much: another model, tokenizer or chat template"
