"""The reasons why rows of data are dropped."""

from collections import Counter

REASON_COUNT = 5
"""Reasons that a summary names."""


class Defect(Exception):
    """A row cannot be used. The text of the exception is the reason, under which such rows are counted."""


def summarise(defects: Counter[str]) -> str:
    """List the most common reasons with their counts in one line."""
    common = defects.most_common(REASON_COUNT)
    counts = ", ".join(f"{reason} ({count})" for reason, count in common)
    rest = defects.total() - sum(count for _, count in common)
    return f"{counts}, other reasons ({rest})" if rest else counts or "none"
