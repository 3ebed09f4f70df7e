"""Why rows of data are dropped."""

from collections import Counter

REASONS = 5


class Defect(Exception):
    """Why a row cannot be used; the text is the reason that it is counted under."""


def summary(defects: Counter[str]) -> str:
    """The most common reasons with their counts, in one line."""
    common = defects.most_common(REASONS)
    shown = ", ".join(f"{reason} ({count})" for reason, count in common)
    rest = defects.total() - sum(count for _, count in common)
    return f"{shown}, other reasons ({rest})" if rest else shown or "none"
