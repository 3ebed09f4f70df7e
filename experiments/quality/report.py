"""Writes the table and the picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.quality.figures import Curve, Measured, equal_n
from infalign.arrays import Floats
from infalign.estimators import Estimate, over_prompts
from infalign.plots import COLOURS, save

HEAD = (
    "| way | | quantile | by the judge | tokens | equal N | tokens of that N | seconds, p50 | first event, p50 |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
MARKS = {"fixed N": "o", "adaptive N": "^", "early rejection": "s", "both": "D", "controlled": "P"}


def describe(ways: list[Measured], curve: Curve) -> dict[str, Any]:
    """Return all figures, for the table, the picture and a file.

    Args:
        ways: What was measured.
        curve: Fixed N on the same prompts.
    """
    best = curve.best()
    rows = []
    for one in ways:
        n, ratio = equal_n(one, curve)
        rows.append(
            {
                "group": one.way.group,
                "way": one.way.label,
                "quantile": _numbers(over_prompts(one.quantile)),
                "judged": _numbers(None if one.judged is None else over_prompts(one.judged)),
                "tokens": _numbers(over_prompts(one.tokens)),
                "equal_n": _numbers(n),
                "ratio": _numbers(ratio),
                "seconds": _median(one.seconds),
                "first_seconds": _median(one.first_seconds),
            }
        )
    return {
        "prompts": len(best),
        "curve": {"quantile": best.mean(axis=0).round(5).tolist(), "tokens": round(float(curve.tokens.mean()), 3)},
        "ways": rows,
    }


def write_table(figures: dict[str, Any]) -> str:
    """Write the table of one bundle, in Markdown."""
    lines = [HEAD]
    for row in figures["ways"]:
        cells = (
            row["group"],
            row["way"],
            _text(row["quantile"]),
            _text(row["judged"]),
            f"{row['tokens'][0]:.0f}",
            _text(row["equal_n"], 1),
            _text(row["ratio"], 2),
            *("" if row[key] is None else f"{row[key]:.2f}" for key in ("seconds", "first_seconds")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_picture(results: dict[str, Any], path: Path) -> None:
    """Draw quality against tokens, with a panel for each measurement, and below against seconds of the requests sent.

    Args:
        results: Figures by the name of the bundle.
        path: Where the picture is saved.
    """
    figure = Figure(figsize=(3.6 * len(results) + 0.4, 6.4), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False)
    for row, cost in zip(grid, ("tokens", "seconds"), strict=True):
        for axis, (name, figures) in zip(row, results.items(), strict=True):
            if cost == "seconds" and figures["ways"][0]["seconds"] is None:
                axis.set_axis_off()
                continue
            axis.set_title(f"{name}, by {cost}", fontsize=10)
            axis.grid(alpha=0.25, linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            _draw_panel(axis, figures, cost)
        row[0].set_ylabel("mean quantile")
    fullest = max(grid[0], key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    fullest.legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, path, results)


def _draw_panel(axis: Axes, figures: dict[str, Any], cost: str) -> None:
    curve = figures["curve"]["quantile"]
    if cost == "tokens":
        axis.plot(np.arange(1, len(curve) + 1) * figures["curve"]["tokens"], curve, color="black", label="fixed N")
    for group, colour in zip(MARKS, ("black", *COLOURS), strict=False):
        rows = [row for row in figures["ways"] if row["group"] == group]
        places = [row["seconds"] if cost == "seconds" else row["tokens"][0] for row in rows]
        is_curve = group == "fixed N"
        if rows and not (is_curve and cost == "tokens"):  # the curve has every N already
            style: dict[str, Any] = {"color": colour, "markersize": 5, "label": group}
            axis.plot(places, [row["quantile"][0] for row in rows], MARKS[group] + ("-" if is_curve else ""), **style)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("tokens of all candidates" if cost == "tokens" else "seconds, median of requests")


def _median(values: Floats | None) -> float | None:
    return None if values is None else round(float(np.median(values)), 4)


def _numbers(estimate: Estimate | None) -> list[float | None] | None:
    if estimate is None:
        return None
    values = (estimate.value, estimate.low, estimate.high)
    return [round(value, 5) if np.isfinite(value) else None for value in values]


def _text(numbers: list[float | None] | None, digits: int = 3) -> str:
    if numbers is None or numbers[0] is None:
        return ""
    value, low, high = numbers
    ends = (f"{end:.{digits}f}" if end is not None else "?" for end in (low, high))
    return f"{value:.{digits}f} [{', '.join(ends)}]"
