"""How the cost of one system grows with N, clients and the length of prompts, and where it stops being linear."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infalign.plots import panels, save
from loadtests.serving.models import LENGTH, Models
from loadtests.serving.systems import Running, Turn

N = (1, 4, 16, 64, 256)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 64, 190, 400, 900)
SECONDS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
TOKENS = 64
"""Of each candidate."""


@dataclass(frozen=True)
class Point:
    """One load and what it took."""

    varied: str
    value: int
    n: int
    turn: Turn

    @property
    def milliseconds(self) -> float:
        """Of the whole system, for one candidate."""
        return 1000 * self.turn.seconds / (self.turn.requests * self.n)


def grow(running: Running, models: Models) -> list[Point]:
    """Vary N, then clients, then the length of prompts."""
    points = []

    def measure(varied: str, value: int, clients: int, n: int, length: int, count: int) -> None:
        texts = models.prompts(count, length, seed=1_000_000 + len(points))
        load: dict[str, Any] = {"clients": clients, "n": n, "tokens": TOKENS, "prompts": texts}
        points.append(Point(varied, value, n, running.measure(load)))

    for n in N:
        measure("N", n, 1, n, LENGTH, max(2, 16 // n))
    for clients in CLIENTS:
        measure("clients", clients, clients, 4, LENGTH, max(4, clients))
    for length in LENGTHS:
        measure("tokens of the prompt", length, 8, 4, length, 8)
    return points


def table(points: list[Point]) -> str:
    """A Markdown table of all points."""
    lines = ["| | | requests/s | ms per candidate | p50 s | cores |", "|---|---|---|---|---|---|"]
    for point in points:
        latencies = sorted(point.turn.latencies)
        lines.append(
            f"| {point.varied} | {point.value} | {point.turn.rate:.3f} | {point.milliseconds:.0f} "
            f"| {latencies[len(latencies) // 2]:.1f} | {point.turn.cores:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(points: list[Point], path: Path) -> None:
    """Draw the time of a request against N, clients and the length of prompts, with the numbers beside it."""
    names = list(dict.fromkeys(point.varied for point in points))
    figure, axes = panels([f"time of {'all requests' if name == 'clients' else 'a request'}" for name in names])
    for axis, name in zip(axes, names, strict=True):
        own = [point for point in points if point.varied == name]
        values = np.array([point.value for point in own])
        taken = np.array([point.turn.seconds / point.turn.requests for point in own])
        if name == "clients":
            taken = taken * values
        axis.loglog(values, taken, "o-")
        axis.loglog(values, taken[0] * values / values[0], ":", color="black", label="in proportion")
        axis.set_xticks(values, map(str, values))
        seconds = [tick for tick in SECONDS if taken.min() / 2 < tick < 2 * taken.max()]
        axis.set_yticks(seconds, map(str, seconds))
        axis.set_ylim(taken.min() / 1.5, taken.max() * 3)
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.set_ylabel("seconds")
        axis.legend(fontsize=8, frameon=False)
    save(figure, path, {"points": [asdict(point) for point in points]})
