"""How the gain grows with the draws of training and with the width of the network."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gains.methods import BEST, IDENTITY, IDENTITY_COARSE, METHODS, WORST, Method
from experiments.gains.policies import Job, Measurement
from experiments.gains.results import Results
from experiments.gains.table import write_head, write_row
from infalign import Estimate
from infalign.plots import COLOURS, panels, save
from infalign.procedures import BestOfN, Procedure, WorstOfN

STEP, BASE = 256, 120
"""Draws per step, and steps that the learning rates of methods are for."""
STUDIED: tuple[tuple[Method, Method, Procedure], ...] = (
    (IDENTITY, BEST, BestOfN(4)),
    (IDENTITY_COARSE, WORST, WorstOfN(4)),
)
"""Baseline, method, and the procedure that both are compared under."""
DIGITS = 3
"""Decimals of what is kept per prompt."""


@dataclass(frozen=True, order=True)
class Place:
    """A point of the curves."""

    width: int
    steps: int

    @property
    def draws(self) -> int:
        """Responses that are drawn in training."""
        return self.steps * STEP

    def job(self, method: Method, seed: int) -> Job:
        """Return the policy of a method here. With four times the steps, each is half as large."""
        rate = method.learning_rate * (BASE / self.steps) ** 0.5
        settings = (f"ctrl.learning_rate={rate:.2g}", f"ctrl.steps={self.steps}", f"model.scratch.hidden={self.width}")
        return Job(method, seed, settings)


class Curves:
    """What was measured so far. It is kept in a file, so that an experiment of many hours can be interrupted.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[tuple[Place, Method, int], Measurement] = {}
        if path.is_file():
            methods = {method.name: method for method in METHODS}
            for row in json.loads(path.read_text(encoding="utf-8"))["policies"]:
                key = Place(row.pop("width"), row.pop("steps")), methods[row.pop("method")], row.pop("seed")
                self.rows[key] = Measurement(**row)

    def list_missing(self, places: Sequence[Place], seeds: int) -> Iterator[tuple[Place, Job]]:
        """List the policies that are not measured yet, those that take least time first.

        Args:
            places: Points of the curves.
            seeds: Policies per method and point.
        """
        for seed in range(seeds):
            for place in sorted(places):
                for method in [method for baseline, best, _ in STUDIED for method in (baseline, best)]:
                    if (place, method, seed) not in self.rows:
                        yield place, place.job(method, seed)

    def add(self, place: Place, job: Job, measurement: Measurement) -> None:
        """Take a measurement, and write the file."""
        kept = {
            what: {
                str(procedure): np.round(getattr(measurement, what)[str(procedure)], DIGITS).tolist()
                for *_, procedure in STUDIED
            }
            for what in ("wins", "judged", "train")
        }
        kept["kl"] = np.round(measurement.kl, DIGITS).tolist()
        self.rows[place, job.method, job.seed] = Measurement(**{**asdict(measurement), **kept})
        rows = [
            {"width": place.width, "steps": place.steps, "method": method.name, "seed": seed, **asdict(row)}
            for (place, method, seed), row in sorted(self.rows.items(), key=lambda item: (item[0][0], item[0][1].name))
        ]
        lines = ",\n".join(json.dumps(row) for row in rows)
        self._path.write_text('{"policies": [\n' + lines + "\n]}\n", encoding="utf-8")

    def results(self, anchors: int) -> dict[Place, Results]:
        """Return the figures of each place at which all methods have been measured.

        Args:
            anchors: K.
        """
        whole = {}
        for place in sorted({place for place, _, _ in self.rows}):
            rows = [(Job(method, seed), row) for (at, method, seed), row in self.rows.items() if at == place]
            if len({job.method for job, _ in rows}) == 2 * len(STUDIED):
                whole[place] = Results(rows, anchors)
        return whole


HEAD = """# More draws, wider networks

How the win rates of CTRL `optimal` and the calibrated identity grow with the responses that are drawn in training, and
with the width of the network. Each has its learning rate of the [main table](../reproduce.md) times √(30,720 / draws),
and a KL of about 0.5. Intervals of 95% are over prompts, and over the seeds of training where there are several.

Made by `python -m experiments.gains curves --output docs/results/curves`, which goes on where it was interrupted.
[Every policy](policies.json), [numbers](curves.json).

![Win rates and the share of theory's room against draws](curves.svg)

*Dots, and squares for the larger width: test prompts. Crosses: training prompts. Horizontal lines: what theory allows
CTRL (above) and the identity.*

*Theory's room* is by how much the optimal policies of the two methods differ, each at its measured KL. *KL that shows*
is the KL of the distribution of CTRL's quantiles: what remains moves probability between answers of equal quality.
*Theory at that* is what theory allows CTRL at this smaller KL.
"""


def write_curves(curves: dict[Place, Results]) -> str:
    """Write the page, in Markdown.

    Args:
        curves: Results of :meth:`Curves.results`.
    """
    names = (
        "width, draws, seeds, under, calibrated identity, CTRL, gain, theory's room, share of it, gain by the judge, "
    )
    names += "KL that shows, theory at that, CTRL on training prompts"
    lines = [HEAD, *write_head(names.split(", "))]
    for place, results in curves.items():
        for baseline, method, procedure in STUDIED:
            shown = results.visible_kl(method)
            cells = [
                place.width,
                f"{place.draws:,}",
                results.seeds(baseline, method),
                procedure,
                results.wins(baseline, procedure),
                results.wins(method, procedure),
                results.gain(method, baseline, procedure),
                f"{results.room(method, baseline, procedure):.3f}",
                _percent(results.share(method, baseline, procedure)),
                results.gain(method, baseline, procedure, "judged"),
                f"{shown:.2f}",
                f"{results.theory(method, procedure, shown):.3f}",
                results.wins(method, procedure, "train"),
            ]
            lines.append(write_row(cells))
    return "\n".join(lines) + "\n"


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def draw_curves(curves: dict[Place, Results], output: Path) -> None:
    """Draw win rates and the share of theory's room against draws, and save the picture with its numbers.

    Args:
        curves: Results of :meth:`Curves.results`.
        output: File of the picture.
    """
    figure, axes = panels([*(f"both decoded by {procedure}" for *_, procedure in STUDIED), "share of theory's room"])
    numbers: dict[str, Any] = {}
    for number, (baseline, method, procedure) in enumerate(STUDIED):
        widths = sorted({place.width for place in curves})
        for width, line, marker in zip(widths, ("-", "--", ":"), "osD", strict=False):
            style = {"linestyle": line, "marker": marker}
            places = [place for place in curves if place.width == width]
            draws = [place.draws for place in places]
            for colour, each in zip(COLOURS, (baseline, method), strict=False):
                wins = [curves[place].wins(each, procedure) for place in places]
                train = [curves[place].wins(each, procedure, "train").value for place in places]
                label = f"{'CTRL' if each == method else 'identity'}, width {width}"
                _draw_line(axes[number], draws, wins, label, color=colour, **style)
                axes[number].plot(draws, train, "x", color=colour, markersize=5)
                numbers[f"{procedure}, {label}"] = {"draws": draws, "wins": [w.value for w in wins], "train": train}
            shares = [curves[place].share(method, baseline, procedure) for place in places]
            label = f"{procedure}, width {width}"
            _draw_line(axes[-1], draws, shares, label, color=COLOURS[number + 2], **style)
            numbers[f"share, {label}"] = {"draws": draws, "share": [share.value for share in shares]}
        last = list(curves.values())[-1]
        for colour, each in zip(COLOURS, (baseline, method), strict=False):
            axes[number].axhline(last.theory(each, procedure), color=colour, linewidth=0.8, alpha=0.7)
    ticks = sorted({place.draws for place in curves})
    axes[0].set_ylabel("win rate over the reference")
    axes[-1].axhline(1, color="black", linewidth=0.8)
    axes[-1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick / 1000:.0f}k" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("responses drawn in training")
        axis.legend(fontsize=7, frameon=False)
    save(figure, output, numbers)


def _draw_line(axis: Any, draws: list[int], values: list[Estimate], label: str, **style: Any) -> None:
    axis.plot(draws, [value.value for value in values], markersize=5, label=label, **style)
    axis.fill_between(
        draws, [value.low for value in values], [value.high for value in values], color=style["color"], alpha=0.12
    )
