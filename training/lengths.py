"""How long the sequences of a run's data are, in tokens, as the stage ``data`` reports it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPORT = "report.json"
TOKENS = "tokens"


@dataclass(frozen=True)
class Lengths:
    """Of the sequences of one kind."""

    longest: int
    mean: float
    rows: int


def describe(lengths: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """For the report: of each kind that there is any of."""
    return {
        kind: asdict(Lengths(max(values), round(sum(values) / len(values), 1), len(values)))
        for kind, values in lengths.items()
        if values
    }


def read_lengths(directory: Path) -> dict[str, Lengths]:
    """What the stage in ``directory`` reports.

    ``prompt``: a prompt with the room that is kept for its response; ``answer`` and ``comparison``: a prompt with its
    answer, or with the longer of its two responses.
    """
    report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    return {kind: Lengths(**values) for kind, values in report[TOKENS].items()}
