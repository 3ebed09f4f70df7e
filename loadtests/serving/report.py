"""Tables and pictures of what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from infalign.plots import COLOURS, save
from loadtests.serving.systems import Running, Turn

TICKS = (0.8, 1, 1.5, 2, 3, 5, 10, 20)
HEADER = (
    "| system | a request | requests/s | ratio of ours | p50 s | p95 s | p99 s | tokens | cores | PSS GB | start s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """What one system did at one load. Three figures are the median, the least and the most of its turns."""

    system: str
    note: str
    """What a request was to it."""
    rate: tuple[float, float, float]
    """Requests per second."""
    ratio: tuple[float, float, float]
    """Ours by its own, of turns of the same round."""
    latency: tuple[float, float, float]
    """p50, p95 and p99, in seconds, of all requests."""
    tokens: float
    """For each request."""
    cores: float
    pss: float
    """GB, the most of its turns."""
    start: float
    """Seconds until it was ready."""

    def __str__(self) -> str:
        rate, ratio = ("{:.3f} ({:.3f}–{:.3f})".format(*self.rate), "{:.2f} ({:.2f}–{:.2f})".format(*self.ratio))
        latency = " | ".join(f"{one:.1f}" for one in self.latency)
        rest = f"{self.tokens:.0f} | {self.cores:.2f} | {self.pss:.1f} | {self.start:.0f}"
        return f"| {self.system} | {self.note} | {rate} | {ratio} | {latency} | {rest} |"


@dataclass(frozen=True)
class Table:
    """All systems at one load."""

    title: str
    ours: str
    """The system that others are compared with."""
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return "\n".join([self.title, "", HEADER, *map(str, self.rows)]) + "\n"


def table(title: str, systems: Sequence[Running], turns: Mapping[str, list[Turn]], ours: str) -> Table:
    """The table of ``turns``, which are lists by name of the system, round by round."""
    rows = []
    for system in systems:
        own = turns[system.system.name]
        rates = np.array([turn.rate for turn in own])
        ratios = np.array([turn.rate for turn in turns[ours]]) / rates
        p50, p95, p99 = np.percentile([latency for turn in own for latency in turn.latencies], [50, 95, 99])
        rows.append(
            Row(
                system.system.name,
                system.system.note,
                _spread(rates),
                _spread(ratios),
                (float(p50), float(p95), float(p99)),
                sum(turn.tokens for turn in own) / sum(turn.requests for turn in own),
                float(np.mean([turn.cores for turn in own])),
                max(turn.pss for turn in own),
                system.start_seconds,
            )
        )
    return Table(title, ours, tuple(rows))


def draw(tables: Sequence[Table], path: Path) -> None:
    """Draw how many times as fast ours is, with the numbers in a JSON file beside the picture."""
    loads = list(dict.fromkeys(one.title for one in tables))
    others = {
        load: [row for one in tables if one.title == load for row in one.rows if row.system != one.ours]
        for load in loads
    }
    names = list(dict.fromkeys(row.system for rows in others.values() for row in rows))
    figure = Figure(figsize=(9, 1.2 + 0.18 * sum(map(len, others.values())) + 0.15 * len(loads)), layout="constrained")
    axis = figure.add_subplot()
    place, ticks = 0.0, []
    points: dict[str, list[tuple[float, Row]]] = {name: [] for name in names}
    for rows in others.values():
        ticks.append(place + (len(rows) - 1) / 2)
        for row in rows:
            points[row.system].append((place, row))
            place += 1
        place += 0.8
    for number, (name, own) in enumerate(points.items()):
        middle, least, most = np.array([row.ratio for _, row in own]).T
        error = np.stack([middle - least, most - middle])
        colour = COLOURS[number % len(COLOURS)]
        axis.errorbar(middle, [at for at, _ in own], xerr=error, fmt="o", label=name, color=colour)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(TICKS, map(str, TICKS))
    axis.minorticks_off()
    axis.set_xlabel("answers per second: ours divided by theirs")
    axis.set_yticks(ticks, loads)
    axis.invert_yaxis()
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path, {"tables": [asdict(one) for one in tables]})


def _spread(values: Any) -> tuple[float, float, float]:
    return float(np.median(values)), float(values.min()), float(values.max())
