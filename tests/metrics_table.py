"""The table of docs/reference/metrics.md."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"^\| `(infalign_\w+)` \| (\w+) \|([^|]*)\| [^|]+ \| [^|]+ \| [^|]+ \|$", re.MULTILINE)


@dataclass(frozen=True)
class Documented:
    """A row."""

    type: str
    labels: frozenset[str]


def documented() -> dict[str, Documented]:
    """Every metric of the table, by its name."""
    text = PAGE.read_text(encoding="utf-8")
    rows = ROW.findall(text)
    assert len(rows) == len(re.findall(r"^\| `infalign_", text, re.MULTILINE)), "a row that is not one"
    return {name: Documented(kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
