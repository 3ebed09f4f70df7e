"""Writes the page that says what works with each kind of reward. Each of its cells is run by a test."""

from tests.integration import test_kinds, test_remote
from tests.kinds import COLUMNS, KINDS, marked_tests
from tools.markdown import page, table


def write_reward_kinds() -> str:
    """The page of the kinds of rewards.

    Raises:
        ValueError: No test runs a cell.
    """
    tests = list(marked_tests(test_kinds, test_remote))
    cells = {(kind, column) for _, column, kinds in tests for kind in kinds}
    if missing := [f"{kind}: {column}" for kind in KINDS for column in COLUMNS if (kind, column) not in cells]:
        raise ValueError(f"tools/reward_kinds.py: no test runs {', '.join(missing)}")
    legend = [
        (column, text, ", ".join(f"`{name}`" for name, of, _ in tests if of == column))
        for column, text in COLUMNS.items()
    ]
    parts = [
        "# Kinds of rewards",
        "What works with each [kind of reward](../guides/rewards.md). A cell says yes because a test runs it, with "
        "models of a few thousand random weights. This page is written from the marks of these tests.",
        table(", ".join(["kind", *COLUMNS]), [(kind.title, *(["yes"] * len(COLUMNS))) for kind in KINDS.values()]),
        "## What a cell says",
        table("column, what is run, tests", legend),
    ]
    return page(parts)
