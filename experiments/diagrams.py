"""Pictures of docs/concepts that are boxes and arrows: the parts of a bundle, the path of CTRL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from infalign.plots import panels, save

PALE = {"models": "#dcebf5", "data": "#fdf1d8", "result": "#d9f0e6", "plain": "#f0f0f0"}
"""Colours of boxes, by what is in them."""


def _diagram(width: float, height: float) -> tuple[Any, Axes]:
    figure, (axis,) = panels([""], height)
    figure.set_size_inches(width, height)
    axis.set_axis_off()
    axis.grid(visible=False)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 100)
    return figure, axis


def _box(axis: Axes, corner: tuple[float, float], size: tuple[float, float], lines: Sequence[str], kind: str) -> None:
    (x, y), (width, height) = corner, size
    style = "round,pad=0,rounding_size=1.5"
    axis.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=PALE[kind], edgecolor="#555555"))
    step = height / (len(lines) + 0.6)
    for row, text in enumerate(lines):
        weight, size_of_text = ("bold", 9.5) if row == 0 else ("normal", 8.5)
        top = y + height - step * (row + 0.8)
        axis.text(x + width / 2, top, text, ha="center", va="center", fontsize=size_of_text, fontweight=weight)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.2})


def draw_bundle(folder: Path) -> None:
    """The parts of a bundle, and who uses each."""
    figure, axis = _diagram(9.2, 4.0)
    parts = {
        "reference/": "the model that quantiles refer to",
        "policy/  or  adapters/NAME/": "the model that answers",
        "reward/  or  reward/NAME/": "sequence classifier with one output",
        "calibration/": "K reference rewards for each prompt",
        "scorer/": "the prefix scorer, if there is one",
        "evaluation/NAME/": "figures that were measured",
        "bundle.json": "manifest, with the SHA-256 of every file",
        "README.md": "model card",
    }
    axis.text(2, 96, "a bundle is one directory", fontsize=10, fontweight="bold")
    for row, (name, what) in enumerate(parts.items()):
        y = 84 - 11.2 * row
        kind = "data" if row in (3, 5) else "models" if row < 5 else "plain"
        style = "round,pad=0,rounding_size=1"
        axis.add_patch(FancyBboxPatch((2, y - 4), 60, 10, boxstyle=style, facecolor=PALE[kind], edgecolor="#555555"))
        axis.text(4, y + 1, name, va="center", fontsize=8.5, family="monospace")
        axis.text(32, y + 1, what, va="center", fontsize=8.5)
    users = (
        (74, "draws", ("reference/, for calibration on demand", "policy/, for candidates"), (85, 73.8)),
        (45, "scores", ("reward/, for every candidate",), (62.6,)),
        (19, "ranks", ("calibration/, for quantiles",), (51.4,)),
    )
    for y, title, lines, sources in users:
        _box(axis, (69, y - 4), (30, 22 if len(lines) > 1 else 16), [f"the server {title}", *lines], "result")
        for source in sources:
            _arrow(axis, (62, source), (69, y + 5))
    save(figure, folder / "bundle.svg", {"parts": parts})


def draw_ctrl(folder: Path) -> None:
    """The path from data to a bundle, stage by stage."""
    figure, axis = _diagram(9.6, 4.6)
    stages = {
        "data": ((1, 68), (17, 24), ["1  data", "prompts, answers,", "comparisons"], "data"),
        "sft": ((27, 80), (22, 17), ["2  sft", "→ the reference"], "models"),
        "reward": ((27, 56), (22, 17), ["3  reward", "→ the reward model"], "models"),
        "rollouts": ((58, 66), (18, 24), ["4  rollouts", "K scored responses", "to every prompt"], "data"),
        "calibrate": ((82, 66), (17, 24), ["5  calibrate", "→ quantiles", "C of any reward"], "data"),
        "scorer": ((82, 16), (17, 17), ["6  scorer", "→ the prefix scorer"], "models"),
        "ctrl": (
            (38, 8),
            (36, 34),
            ["7  ctrl", "draw, score, look up C", "maximise Φ(C) − β · KL", "settle at target_kl"],
            "result",
        ),
        "evaluate": (
            (1, 8),
            (26, 34),
            ["8  evaluate", "fresh draws on test", "prompts: win rate,", "KL, judge → bundle"],
            "plain",
        ),
    }
    for corner, size, lines, kind in stages.values():
        _box(axis, corner, size, lines, kind)
    arrows = (
        ((18, 83), (27, 88), "answers", (20.5, 91.5), "center"),
        ((18, 75), (27, 65), "comparisons", (21.5, 61), "center"),
        ((49, 88), (58, 82), "draws", (55.5, 89), "center"),
        ((49, 64), (58, 74), "scores", (56, 64), "center"),
        ((76, 78), (82, 78), "", (79, 80), "center"),
        ((86, 66), (74, 34), "quantiles", (78.5, 50), "right"),
        ((92, 66), (92, 33), "responses,\nquantiles", (91, 51), "right"),
        ((38, 56), (46, 42), "reward model, reference", (46.5, 48), "left"),
        ((38, 25), (27, 25), "the policy", (32.5, 28), "center"),
    )
    for start, end, label, place, side in arrows:
        _arrow(axis, start, end)
        axis.text(*place, label, ha=side, fontsize=8, color="#333333")
    save(figure, folder / "ctrl.svg", {"stages": list(stages)})
