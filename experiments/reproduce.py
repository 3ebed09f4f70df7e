"""The main experiment: does aligning for the decoding procedure win under that procedure?

    python experiments/reproduce.py --output docs/results

All methods start from the data and the reference of ``study.yaml``: the help desk of the demo, with more answers and
comparisons. Each trains one policy per seed, with the same solver, steps and samples, and settles at the same KL on
validation prompts. All are measured on test prompts that nothing was chosen by. Stages are cached as in any run, so an
interrupted experiment goes on where it stopped.
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

from infalign import Estimate, point
from infalign.arrays import Floats
from infalign.frontier import Point
from infalign.home import home
from infalign.parsing import parse_procedure
from infalign.plots import frontier_figure, save
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN

STUDY = Path(__file__).with_name("study.yaml")
PROCEDURES: tuple[Procedure, ...] = (Standard(), BestOfN(2), BestOfN(4), BestOfN(8), WorstOfN(2), WorstOfN(4))
RESAMPLES = 4000


@dataclass(frozen=True)
class Method:
    """What is trained: a transformation for a decoding procedure."""

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


def train_policy(method: Method, seed: int, overrides: tuple[str, ...] = ()) -> Any:
    """Train the policy of a method unless it exists, and return the :class:`training.stages.Artifacts` of its run."""
    from training.configs import load_config
    from training.pipeline import run_stages
    from training.runtime import prepare_process

    prepare_process()
    config = load_config(
        str(STUDY),
        (
            *overrides,
            f"transformation={method.transformation}",
            f"procedure={method.procedure}",
            f"ctrl.seed={seed}",
        ),
    )
    return run_stages(config, home() / "runs")


def measure_policy(method: Method, seed: int, overrides: tuple[str, ...], threads: int) -> dict[str, Any]:
    """Train and measure one policy, with ``threads`` threads of torch.

    Returns:
        KL and win rates per test prompt, each a list of P numbers, the win rates by procedure.
    """
    import torch

    torch.set_num_threads(threads)
    from infalign import estimators
    from training.evaluation.draws import load_draws

    artifacts = train_policy(method, seed, overrides)
    draws = load_draws(artifacts.evaluation)
    ours, theirs = draws.policy, draws.reference
    return {
        "kl": draws.kl.tolist(),
        "solved": json.loads((artifacts.policy.parent / "solved.json").read_text(encoding="utf-8")),
        "wins": {str(p): estimators.win_rate(ours.rewards, theirs.rewards, p).tolist() for p in PROCEDURES},
        "judged": {
            str(p): estimators.judged_win_rate(
                ours.rewards, ours.judge_scores, theirs.rewards, theirs.judge_scores, p
            ).tolist()
            for p in PROCEDURES
        },
    }


def over_seeds(values: Floats) -> Estimate:
    """Average over seeds and prompts.

    Args:
        values: Numbers of shape (S, P).

    Returns:
        The mean with its 95% percentile bootstrap interval, for which both seeds and prompts are resampled.
    """
    random = np.random.default_rng(0)
    seeds, prompts = values.shape
    means = [
        values[random.integers(0, seeds, seeds)][:, random.integers(0, prompts, prompts)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


class Results:
    """The figures of all policies.

    Args:
        measurements: What :func:`measure_policy` returned, by method and seed.
    """

    def __init__(self, measurements: dict[tuple[str, int], dict[str, Any]]) -> None:
        self.measurements = measurements
        self.methods = [m for m in METHODS if any(name == m.name for name, _ in measurements)]

    def values(self, method: str, what: str, procedure: str | None = None) -> Floats:
        """Return one figure of a method as (S, P), with a row per seed."""
        rows = [measurement for (name, _), measurement in sorted(self.measurements.items()) if name == method]
        return np.array([row[what][procedure] if procedure else row[what] for row in rows])

    def kl(self, method: str) -> Estimate:
        """Return the KL of a method on test prompts."""
        return over_seeds(self.values(method, "kl"))

    def wins(self, method: str, procedure: Procedure, what: str = "wins") -> Estimate:
        """Return the win rate of a method, by the reward that selects responses or, with ``judged``, by the judge."""
        return over_seeds(self.values(method, what, str(procedure)))

    def gain(self, better: str, worse: str, procedure: str, what: str = "wins") -> Estimate:
        """Return the difference of two methods, seed by seed and prompt by prompt."""
        ours, theirs = self.values(better, what, procedure), self.values(worse, what, procedure)
        seeds = min(len(ours), len(theirs))
        return over_seeds(ours[:seeds] - theirs[:seeds])


def compute_room(results: Results, better: str, worse: str, procedure: Procedure, anchors: int) -> float:
    """Compute by how much one method beats another in theory, with K anchors and at the measured KL of each."""
    by_name = {method.name: method for method in METHODS}
    ours, theirs = (
        point(
            by_name[name].transformation,
            procedure,
            kl=results.kl(name).value,
            anchors=anchors,
            training_procedure=parse_procedure(by_name[name].procedure),
        ).win_rate
        for name in (better, worse)
    )
    return ours - theirs


def write_table(results: Results, anchors: int, settings: str) -> str:
    """Write the text of the results, in Markdown."""
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
    names_seen = {method.name for method in results.methods}
    for better, worse, procedure in CLAIMS:
        if {better, worse} <= names_seen:
            room = compute_room(results, better, worse, parse_procedure(procedure), anchors)
            gain, judge_gain = (results.gain(better, worse, procedure, what) for what in ("wins", "judged"))
            lines.append(f"| {better} | {worse} | {procedure} | {gain} | {room:.3f} | {judge_gain} |")
    return "\n".join(lines) + "\n"


def draw_picture(results: Results, anchors: int, output: Path) -> None:
    """Draw the measured win rates below the frontier of K anchors, and save the picture."""
    procedures = [Standard(), BestOfN(4), WorstOfN(4)]
    kls = np.linspace(0.02, 1.0, 25)
    texts = list(dict.fromkeys(m.transformation for m in results.methods))
    curves = [point(text, p, kl=float(kl), anchors=anchors) for p in procedures for text in texts for kl in kls]
    dots = [
        Point(m.transformation, str(p), results.kl(m.name).value, results.wins(m.name, p).value, 0.0)
        for p in procedures
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
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of study.yaml.")
@click.option("--methods", type=click.IntRange(1, len(METHODS)), default=len(METHODS), help="Only the first so many.")
def main(output: Path, seeds: int, workers: int, overrides: tuple[str, ...], methods: int) -> None:
    """Train every method, measure it, and write table, picture and JSON."""
    from training.configs import load_config

    config = load_config(str(STUDY), overrides)
    measurements: dict[tuple[str, int], dict[str, Any]] = {}
    jobs = [(method, seed) for seed in range(seeds) for method in METHODS[:methods]]
    threads = max(1, (os.cpu_count() or 1) // workers)
    first, *rest = jobs
    with _make_pool(1, os.cpu_count() or 1) as pool:  # alone: it makes the stages that all share
        measurements[first[0].name, first[1]] = pool.submit(
            measure_policy, *first, overrides, os.cpu_count() or 1
        ).result()
    with _make_pool(workers, threads) as pool:
        futures = {
            pool.submit(measure_policy, method, seed, overrides, threads): (method, seed) for method, seed in rest
        }
        for future in as_completed(futures):
            method, seed = futures[future]
            measurements[method.name, seed] = future.result()
            _write(measurements, config, output, seeds)
            click.echo(f"{len(measurements)} of {len(jobs)}: {method.name}, seed {seed}", err=True)
    _write(measurements, config, output, seeds)
    draw_picture(Results(measurements), config.rollouts.samples, output / "win_rates.svg")  # a minute, so once
    click.echo((output / "reproduce.md").read_text(encoding="utf-8"))


def _make_pool(workers: int, threads: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _write(measurements: dict[tuple[str, int], dict[str, Any]], config: Any, output: Path, seeds: int) -> None:
    results = Results(measurements)
    output.mkdir(parents=True, exist_ok=True)
    c = config.ctrl
    prompts = len(next(iter(measurements.values()))["kl"])
    settings = (
        f"{seeds} seeds of CTRL on one reference; {c.steps} steps of {c.prompts} prompts x {c.generations} responses "
        f"by `{c.solver}`, settled at KL {c.target_kl:g} on validation prompts; K = {config.rollouts.samples}; "
        f"measured on {prompts} test prompts. 95% intervals over prompts and seeds. Made by `make reproduce`; "
        "[picture](win_rates.svg), [numbers](reproduce.json)."
    )
    (output / "reproduce.md").write_text(write_table(results, config.rollouts.samples, settings), encoding="utf-8")
    numbers = [
        {
            "method": name,
            "seed": seed,
            "kl": float(np.mean(row["kl"])),
            **row["solved"],
            "wins": {p: float(np.mean(v)) for p, v in row["wins"].items()},
            "judged": {p: float(np.mean(v)) for p, v in row["judged"].items()},
        }
        for (name, seed), row in sorted(measurements.items())
    ]
    (output / "reproduce.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
