"""Draws the figures of docs/results/theory.md, and saves the numbers of each beside it.

python experiments/figures.py docs/figures
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from infalign import BestOfN, Cost, Fixed, Policy, WorstOfN, beta_for_kl, parse_transformation, point
from infalign.commands import frontier
from infalign.plots import COLOURS, panels, save
from infalign.quadrature import graded_mesh

SHAPES = {
    "best-of-4": ("identity", "log", "exp(10)", "optimal"),
    "worst-of-4": ("identity", "log", "exp(-10)", "optimal"),
}
COLOUR = {"identity": COLOURS[1], "log": COLOURS[2], "exp(10)": COLOURS[4], "exp(-10)": COLOURS[6], "optimal": "black"}
ANCHORS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 160, 250)
COSTS = np.geomspace(0.3, 0.0005, 40)


def draw_frontier(folder: Path) -> None:
    """Win rate over KL, drawn by the command ``infalign frontier``."""
    transformations = ("gaussian", "identity", "log", "exp(5)", "exp(10)", "exp(-10)", "optimal")
    flags = [flag for t in transformations for flag in ("-t", t)]
    flags += ["-p", "standard", "-p", "best-of-4", "-p", "worst-of-4", "--plot", str(folder / "frontier.svg")]
    CliRunner(catch_exceptions=False).invoke(frontier, flags)


def draw_transformations(folder: Path) -> None:
    """Transformations scaled to [0, 1] (log from where it is finite), and the policies that they make at 0.5 nats."""
    figure, axes = panels(["Φ for best-of-4", "its policies", "Φ for worst-of-4", "its policies"], height=3.2)
    u = np.linspace(0, 1, 201)
    mesh, numbers = graded_mesh(), {}
    for column, (procedure, names) in enumerate(SHAPES.items()):
        rule = BestOfN(4) if procedure == "best-of-4" else WorstOfN(4)
        for name in names:
            phi = parse_transformation(name, rule, kl=0.5)
            low, high = (float(phi(end)) for end in (0.01, 1.0))
            shape = (phi(np.maximum(u, 0.01)) - low) / (high - low)
            density = np.interp(1 - u, mesh.nodes, Policy.of(phi, beta_for_kl(phi, 0.5)).density)
            style: dict[str, Any] = {"color": COLOUR[name], "linestyle": "--" if name == "optimal" else "-"}
            axes[2 * column].plot(u, shape, label=name, **style)
            axes[2 * column + 1].plot(u, density, label=name, **style)
            numbers[f"{procedure} {name}"] = {"shape": shape.round(5).tolist(), "density": density.round(5).tolist()}
        axes[2 * column].legend(fontsize=8, frameon=False)
    for axis, label in zip(axes, ["Φ, from 0.01 to 1 scaled to [0, 1]", "density of the quantile"] * 2, strict=True):
        axis.set_xlabel("quantile u")
        axis.set_ylabel(label)
    save(figure, folder / "transformations.svg", {"u": u.round(5).tolist(), "curves": numbers})


def draw_anchors(folder: Path) -> None:
    """What it costs to know only K rewards per prompt, at 1 nat."""
    figure, axes = panels(["both decoded by best-of-4, KL 1"])
    numbers: dict[str, Any] = {"anchors": list(ANCHORS)}
    for name in SHAPES["best-of-4"]:
        points = [point(name, BestOfN(4), kl=1.0, anchors=k) for k in ANCHORS]
        exact = point(name, BestOfN(4), kl=1.0).win_rate
        wins = [p.win_rate for p in points]
        axes[0].plot(ANCHORS, wins, "o-", markersize=3, color=COLOUR[name], label=name)
        axes[0].axhline(exact, color=COLOUR[name], linestyle=":", linewidth=1)
        numbers[name] = {"win_rate": [round(win, 5) for win in wins], "exact": round(exact, 5)}
    axes[0].set_xscale("log")
    axes[0].set_xticks([4, 8, 16, 32, 64, 128, 250], ["4", "8", "16", "32", "64", "128", "250"], minor=False)
    axes[0].minorticks_off()
    axes[0].set_xlabel("K reference rewards per prompt (dotted: exact)")
    axes[0].set_ylabel("win rate over the reference")
    axes[0].legend(fontsize=8, frameon=False)
    save(figure, folder / "anchors.svg", numbers)


def draw_stopping(folder: Path) -> None:
    """Quantile over draws: fixed n, and the cost rule with exact and with estimated quantiles."""
    figure, axes = panels(["stopping by cost per draw, at most 64 draws"])
    fixed = [Fixed(BestOfN(n)).expectation() for n in range(1, 65)]
    axes[0].plot(*zip(*fixed, strict=True), color="black", label="fixed n")
    numbers: dict[str, Any] = {"fixed n": [[e.draws, round(e.quantile, 5)] for e in fixed]}
    for number, k in enumerate((None, 64, 16, 8)):
        label = "exact quantiles" if k is None else f"K = {k} anchors"
        line = [Cost(BestOfN(64), cost).expectation(k) for cost in COSTS]
        axes[0].plot(*zip(*line, strict=True), color=COLOURS[number], label=label)
        numbers[label] = [[round(e.draws, 5), round(e.quantile, 5)] for e in line]
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes[0].set_xlabel("expected draws")
    axes[0].set_ylabel("expected quantile")
    axes[0].legend(fontsize=8, frameon=False)
    save(figure, folder / "stopping.svg", numbers)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Draw every figure into FOLDER."""
    for draw in (draw_frontier, draw_transformations, draw_anchors, draw_stopping):
        draw(folder)
        click.echo(draw.__doc__)


if __name__ == "__main__":
    main()
