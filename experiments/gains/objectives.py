"""What the objectives of the solver ``ctrl`` are worth for best-of-4."""

from dataclasses import replace

from experiments.gains.methods import BEST, IDENTITY
from experiments.gains.results import Results
from experiments.gains.table import write_head, write_row
from infalign.procedures import BestOfN

OBJECTIVES = (
    BEST,
    replace(BEST, name="fixed Φ", settings=("ctrl.objective=fixed",)),
    replace(BEST, name="fixed Φ, annealed", settings=("ctrl.objective=fixed", "ctrl.anneal=0.7")),
    replace(BEST, name="max@4 of groups of 8", settings=("ctrl.objective=group",)),
    replace(BEST, name="live Φ, one response per prompt", settings=("ctrl.prompts=256", "ctrl.generations=1")),
    IDENTITY,
)
"""The default (live Φ) first, then what it is compared with. All have the same draws, steps and learning rate."""


def write_objectives(results: Results, settings: str) -> str:
    """Write the table, in Markdown.

    Args:
        results: The figures.
        settings: What was trained and measured, in a paragraph.
    """
    lines = ["# Objectives", "", settings, ""]
    names = "objective, KL, win rate, on training prompts, by the judge, gain of live Φ over it, gain by the judge"
    lines += write_head(names.split(", "))
    procedure = BestOfN(4)
    for method in OBJECTIVES:
        if method in results.methods:
            wins = [results.wins(method, procedure, what) for what in ("wins", "train", "judged")]
            gains = [results.gain(BEST, method, procedure, what) for what in ("wins", "judged")]
            name = "live Φ (the default)" if method == BEST else method.name
            lines.append(write_row([name, results.kl(method), *wins, *(gains if method != BEST else ["", ""])]))
    return "\n".join(lines) + "\n"
