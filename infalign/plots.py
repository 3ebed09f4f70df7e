"""Figures of the method, drawn without a display. Each figure is saved together with its numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infalign.errors import InvalidValue
from infalign.frontier import Point

# Okabe and Ito's colours, which differ for any colour vision. Black is for the optimum.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999", "#F0E442")
FORMATS = (".png", ".svg")


def panels(titles: Sequence[str], height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side.

    Args:
        titles: One title for each panel.
        height: Height in inches.

    Returns:
        The figure and the axes of its panels.
    """
    figure = Figure(figsize=(4.2 * len(titles) + 0.4, height), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def frontier_figure(curves: Sequence[Point], dots: Sequence[Point] = ()) -> Figure:
    """Draw win rate against KL, with a panel for each procedure and a line for each transformation.

    The line of ``optimal`` is black where it is the optimum for the panel's procedure.

    Args:
        curves: The points of the lines.
        dots: Points to draw as dots.

    Returns:
        The figure.
    """
    procedures = list(dict.fromkeys(point.procedure for point in curves))
    labels = list(dict.fromkeys(map(_label, curves)))
    figure, axes = panels([f"both decoded by {procedure}" for procedure in procedures])
    for axis, procedure in zip(axes, procedures, strict=True):
        for number, label in enumerate(labels):
            line = [p for p in curves if (p.procedure, _label(p)) == (procedure, label)]
            marks = [p for p in dots if (p.procedure, _label(p)) == (procedure, label)]
            best = label == "optimal"
            style: dict[str, Any] = {"color": "black" if best else COLOURS[number % len(COLOURS)]}
            axis.plot(
                [p.kl for p in line],
                [p.win_rate for p in line],
                "--" if best else "-",
                label=label,
                linewidth=1.6,
                zorder=3 if best else 2,
                **style,
            )
            axis.plot([p.kl for p in marks], [p.win_rate for p in marks], "o", markersize=4, zorder=4, **style)
        axis.set_xlabel("KL from the reference (nats)")
        axis.set_xlim(left=0)
    axes[0].set_ylabel("win rate over the reference")
    axes[-1].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _label(point: Point) -> str:
    """Name the line of a point, by the transformation and by what it is the optimum for if that is not its panel's."""
    is_own = point.aligned_for in (None, point.procedure)
    return point.transformation if is_own else f"{point.transformation} for {point.aligned_for}"


def save(figure: Figure, path: Path, numbers: Mapping[str, Any]) -> Path:
    """Save a figure, and its numbers in a JSON file next to it.

    Args:
        figure: The figure.
        path: File of the figure, ``.png`` or ``.svg``.
        numbers: The numbers that the figure shows.

    Returns:
        Path of the JSON file.

    Raises:
        InvalidValue: The file has another suffix, or its folder does not exist.
    """
    check_path(path)
    sidecar = path.with_suffix(".json")
    with matplotlib.rc_context({"svg.hashsalt": "infalign", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    sidecar.write_text(json.dumps(numbers, allow_nan=False) + "\n", encoding="utf-8")
    return sidecar


def check_path(path: Path) -> None:
    """Check that a figure can be saved at a path, before anything is computed for it.

    Args:
        path: File of the figure.

    Raises:
        InvalidValue: The file has another suffix than ``.png`` or ``.svg``, or its folder does not exist.
    """
    if path.suffix not in FORMATS:
        raise InvalidValue("--plot", str(path), "a file that ends in .png or .svg")
    if not path.parent.is_dir():
        raise InvalidValue("--plot", str(path), "a file in a folder that exists")
