"""The experiment: does aligning for the decoding procedure win under it? At equal budget and KL, over seeds.

    python experiments/reproduce.py --output docs/results

On the demo's world and reference, each method trains one policy per seed with the same solver, steps and samples, and
settles at the same KL on validation prompts. All are measured on test prompts that nothing was chosen by. Stages
are cached like those of any run, so that an interrupted experiment goes on where it stopped.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from infalign import Estimate, point
from infalign.frontier import Point
from infalign.home import home
from infalign.plots import frontier_figure, save
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN, parse_procedure

Floats = NDArray[np.float64]
PROCEDURES: tuple[Procedure, ...] = (Standard(), BestOfN(2), BestOfN(4), BestOfN(8), WorstOfN(2), WorstOfN(4))
RESAMPLES = 4000


@dataclass(frozen=True)
class Method:
    """What is trained: a transformation, for a procedure."""

    name: str
    transformation: str
    procedure: str


METHODS = (
    Method("CTRL exp(10)", "exp(10)", "best-of-4"),
    Method("calibrated identity", "identity", "standard"),
    Method("CTRL exp(-10)", "exp(-10)", "worst-of-4"),
    Method("RLHF, raw reward", "gaussian", "standard"),
    Method("CTRL optimal for best-of-4", "optimal", "best-of-4"),
    Method("CTRL optimal for worst-of-4", "optimal", "worst-of-4"),
    Method("log (best-of-n distillation)", "log", "best-of-4"),
)
CLAIMS = (
    ("CTRL exp(10)", "calibrated identity", "best-of-4"),
    ("CTRL exp(10)", "RLHF, raw reward", "best-of-4"),
    ("CTRL optimal for best-of-4", "calibrated identity", "best-of-4"),
    ("CTRL optimal for best-of-4", "RLHF, raw reward", "best-of-4"),
    ("CTRL exp(-10)", "calibrated identity", "worst-of-4"),
    ("CTRL exp(-10)", "RLHF, raw reward", "worst-of-4"),
    ("CTRL optimal for worst-of-4", "calibrated identity", "worst-of-4"),
    ("CTRL optimal for worst-of-4", "RLHF, raw reward", "worst-of-4"),
    ("calibrated identity", "RLHF, raw reward", "standard"),
)


def trained(method: Method, seed: int, overrides: tuple[str, ...] = ()) -> Any:
    """The directories of one policy's run (:class:`training.pipeline.Parts`), trained if it is not."""
    from training.configs import load_config
    from training.pipeline import run
    from training.runtime import prepare

    prepare()
    config = load_config(
        "demo",
        (
            *overrides,
            f"transformation={method.transformation}",
            f"procedure={method.procedure}",
            f"ctrl.seed={seed}",
        ),
    )
    return run(config, home() / "runs")


def measure(method: Method, seed: int, overrides: tuple[str, ...], threads: int) -> dict[str, Any]:
    """Train and evaluate one policy; win rates per test prompt, (P,) lists by procedure, and KL."""
    import torch

    torch.set_num_threads(threads)
    from infalign import estimators
    from training.evaluation.draws import load_draws

    parts = trained(method, seed, overrides)
    draws = load_draws(parts.measured)
    ours, theirs = draws.policy, draws.reference
    return {
        "kl": draws.kl.tolist(),
        "solved": json.loads((parts.policy / "solved.json").read_text(encoding="utf-8")),
        "wins": {str(p): estimators.win_rate(ours.rewards, theirs.rewards, p).tolist() for p in PROCEDURES},
        "judged": {
            str(p): estimators.judged_win_rate(ours.rewards, ours.judged, theirs.rewards, theirs.judged, p).tolist()
            for p in PROCEDURES
        },
    }


def over_seeds(values: Floats) -> Estimate:
    """Mean of (S, P) with its 95% percentile bootstrap interval over seeds and prompts, both resampled."""
    random = np.random.default_rng(0)
    seeds, prompts = values.shape
    means = [
        values[random.integers(0, seeds, seeds)][:, random.integers(0, prompts, prompts)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


class Results:
    """Every figure of every policy that was trained."""

    def __init__(self, found: dict[tuple[str, int], dict[str, Any]]) -> None:
        self.found = found
        self.methods = [m for m in METHODS if any(name == m.name for name, _ in found)]

    def values(self, method: str, what: str, procedure: str | None = None) -> Floats:
        """(S, P), one row for each seed."""
        rows = [found for (name, _), found in sorted(self.found.items()) if name == method]
        return np.array([row[what][procedure] if procedure else row[what] for row in rows])

    def kl(self, method: str) -> Estimate:
        """Measured on test prompts."""
        return over_seeds(self.values(method, "kl"))

    def wins(self, method: str, procedure: Procedure, what: str = "wins") -> Estimate:
        """Win rate by the selector's reward, or ``judged``."""
        return over_seeds(self.values(method, what, str(procedure)))

    def gain(self, better: str, worse: str, procedure: str, what: str = "wins") -> Estimate:
        """Difference of two methods, seed by seed and prompt by prompt."""
        ours, theirs = self.values(better, what, procedure), self.values(worse, what, procedure)
        seeds = min(len(ours), len(theirs))
        return over_seeds(ours[:seeds] - theirs[:seeds])


def room(results: Results, better: str, worse: str, procedure: Procedure, anchors: int) -> float:
    """What theory leaves between two methods with K anchors, each at the KL it was measured at."""
    by_name = {method.name: method for method in METHODS}
    ours, theirs = (
        point(
            by_name[name].transformation,
            procedure,
            kl=results.kl(name).value,
            anchors=anchors,
            aligned_for=parse_procedure(by_name[name].procedure),
        ).win_rate
        for name in (better, worse)
    )
    return ours - theirs


def report(results: Results, anchors: int, settings: str) -> str:
    """Markdown."""
    names = [str(procedure) for procedure in PROCEDURES]
    lines = [
        "# Aligned for how they are decoded",
        "",
        settings,
        "",
        "## Win rate over the reference, both decoded alike, by the reward model that selects",
        "",
        "| method | KL | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for method in results.methods:
        cells = [str(results.kl(method.name)), *(str(results.wins(method.name, p)) for p in PROCEDURES)]
        lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    lines += ["", "## The same selections by the judge", "", "| method | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for method in results.methods:
        cells = [str(results.wins(method.name, p, "judged")) for p in PROCEDURES]
        lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## What was claimed",
        "",
        "| better | than | under | gain | theory's room | gain by the judge |",
        "|---|---|---|---|---|---|",
    ]
    trained = {method.name for method in results.methods}
    for better, worse, procedure in CLAIMS:
        if {better, worse} <= trained:
            left = room(results, better, worse, parse_procedure(procedure), anchors)
            gain, judged = (results.gain(better, worse, procedure, what) for what in ("wins", "judged"))
            lines.append(f"| {better} | {worse} | {procedure} | {gain} | {left:.3f} | {judged} |")
    return "\n".join(lines) + "\n"


def draw(results: Results, anchors: int, output: Path) -> None:
    """Measured points under the frontier of K anchors."""
    shown = [Standard(), BestOfN(4), WorstOfN(4)]
    kls = np.linspace(0.02, 1.0, 25)
    texts = list(dict.fromkeys(m.transformation for m in results.methods))
    curves = [point(text, p, kl=float(kl), anchors=anchors) for p in shown for text in texts for kl in kls]
    dots = [
        Point(m.transformation, str(p), results.kl(m.name).value, results.wins(m.name, p).value, 0.0)
        for p in shown
        for m in results.methods
        if m.transformation != "optimal" or m.procedure == str(p)  # its curve is the optimum for the panel
    ]
    save(frontier_figure(curves, dots), output, {"measured": [asdict(dot) for dot in dots]})


@click.command()
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Policies per method.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, help="Policies trained side by side.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the demo's config.")
@click.option("--methods", type=click.IntRange(1, len(METHODS)), default=len(METHODS), help="Only the first so many.")
def main(output: Path, seeds: int, workers: int, overrides: tuple[str, ...], methods: int) -> None:
    """Train every method, measure it, and write table, picture and JSON."""
    from training.configs import load_config

    config = load_config("demo", overrides)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    jobs = [(method, seed) for seed in range(seeds) for method in METHODS[:methods]]
    threads = max(1, (os.cpu_count() or 1) // workers)
    first, *rest = jobs
    with _pool(1, os.cpu_count() or 1) as pool:  # alone: it makes the stages that all share
        found[first[0].name, first[1]] = pool.submit(measure, *first, overrides, os.cpu_count() or 1).result()
    with _pool(workers, threads) as pool:
        running = {pool.submit(measure, method, seed, overrides, threads): (method, seed) for method, seed in rest}
        for done in as_completed(running):
            method, seed = running[done]
            found[method.name, seed] = done.result()
            _write(found, config, output, seeds)
            click.echo(f"{len(found)} of {len(jobs)}: {method.name}, seed {seed}", err=True)
    _write(found, config, output, seeds)
    draw(Results(found), config.rollouts.samples, output / "win_rates.svg")  # a minute, so once
    click.echo((output / "reproduce.md").read_text(encoding="utf-8"))


def _pool(workers: int, threads: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _write(found: dict[tuple[str, int], dict[str, Any]], config: Any, output: Path, seeds: int) -> None:
    results = Results(found)
    output.mkdir(parents=True, exist_ok=True)
    c = config.ctrl
    prompts = len(next(iter(found.values()))["kl"])
    settings = (
        f"{seeds} seeds of CTRL on one reference; {c.steps} steps of {c.prompts} prompts x {c.generations} responses "
        f"by `{c.solver}`, settled at KL {c.target_kl:g} on validation prompts; K = {config.rollouts.samples}; "
        f"measured on {prompts} test prompts. 95% intervals over prompts and seeds. Made by `make reproduce`; "
        "[picture](win_rates.svg), [numbers](reproduce.json)."
    )
    (output / "reproduce.md").write_text(report(results, config.rollouts.samples, settings), encoding="utf-8")
    numbers = [
        {
            "method": name,
            "seed": seed,
            "kl": float(np.mean(row["kl"])),
            **row["solved"],
            "wins": {p: float(np.mean(v)) for p, v in row["wins"].items()},
            "judged": {p: float(np.mean(v)) for p, v in row["judged"].items()},
        }
        for (name, seed), row in sorted(found.items())
    ]
    (output / "reproduce.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
