"""Lengths of a run's sequences in tokens, as the stage ``data`` reports them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPORT = "report.json"
"""File of the report."""
TOKENS = "tokens"
"""Key of the lengths in the report."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the sequences of one kind."""

    longest: int
    """Tokens of the longest sequence."""
    mean: float
    """Mean number of tokens."""
    rows: int
    """Number of sequences."""


def describe_lengths(lengths: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Summarise lengths for the report.

    Args:
        lengths: Tokens of every sequence, by kind. Kinds without sequences are left out.

    Returns:
        The fields of :class:`Lengths` by kind.
    """
    return {
        kind: asdict(Lengths(max(values), round(sum(values) / len(values), 1), len(values)))
        for kind, values in lengths.items()
        if values
    }


def read_lengths(directory: Path) -> dict[str, Lengths]:
    """Read the lengths from the report of the stage ``data``.

    Args:
        directory: Directory of the stage.

    Returns:
        Lengths of three kinds. ``prompt`` is a prompt with the room that is reserved for its response, ``answer`` a
        prompt with its answer, and ``comparison`` a prompt with the longer of its two responses.
    """
    report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    return {kind: Lengths(**values) for kind, values in report[TOKENS].items()}
