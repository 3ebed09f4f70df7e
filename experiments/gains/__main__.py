"""The command of the experiment."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from experiments.gains.curves import STEP, Curves, Place, draw_curves, write_curves
from experiments.gains.methods import METHODS
from experiments.gains.objectives import OBJECTIVES, write_objectives
from experiments.gains.policies import STUDY, Job, Measurement, make_reference, measure_policies
from experiments.gains.reader import write_knowledge
from experiments.gains.results import Results
from experiments.gains.table import describe, draw_picture, write_table
from infalign.errors import InvalidValue

WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=os.cpu_count() or 1, help="Policies trained side by side."
)
OUTPUT = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results."
)
SEEDS = click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Policies per method.")


@click.group()
def main() -> None:
    """Measure what aligning for the decoding procedure gains, on the help desk."""


@main.command()
@OUTPUT
@SEEDS
@WORKERS
@click.option("--kl", type=click.FloatRange(0, 10, min_open=True), default=0.5, show_default=True, help="Nats.")
@click.option("--methods", type=click.IntRange(1, len(METHODS)), default=len(METHODS), help="Only the first so many.")
@click.option("--name", default="reproduce", show_default=True, help="Name of the result files.")
def table(output: Path, seeds: int, workers: int, kl: float, methods: int, name: str) -> None:
    """Train every method, measure it, and write table, picture and JSON."""
    picture, command = "win_rates.svg", "make reproduce"
    if name != "reproduce":
        picture = f"{name}.svg"
        command = f"python -m experiments.gains table --kl {kl:g} --methods {methods} --name {name} --output {output}"
    results = _measure(
        [Job(method, seed, (f"ctrl.target_kl={kl}",)) for seed in range(seeds) for method in METHODS[:methods]],
        workers,
        output / name,
        f"Made by `{command}`; [picture]({picture}), [numbers]({name}.json).",
        write_table,
    )
    draw_picture(results, output / picture)


@main.command()
@OUTPUT
@SEEDS
@WORKERS
def objectives(output: Path, seeds: int, workers: int) -> None:
    """Train with every objective of the solver ctrl for best-of-4, and write table and JSON."""
    _measure(
        [Job(method, seed, ("ctrl.target_kl=0.5",)) for seed in range(seeds) for method in OBJECTIVES],
        workers,
        output / "objectives",
        f"Made by `python -m experiments.gains objectives --output {output}`; [numbers](objectives.json).",
        write_objectives,
    )


def _measure(
    jobs: Sequence[Job], workers: int, name: Path, origin: str, write: Callable[[Results, str], str]
) -> Results:
    """Measure policies, and write their table and their figures after each of them."""
    from training.configs import load_config

    config = load_config(str(STUDY), jobs[0].overrides)
    c, anchors = config.ctrl, config.rollouts.samples
    if c is None:
        raise InvalidValue("ctrl", None, "a section ctrl in study.yaml")
    name.parent.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(job.method for job in jobs))
    measurements: list[tuple[Job, Measurement]] = []
    for job, measurement in measure_policies(jobs, workers):
        measurements.append((job, measurement))
        settings = (
            f"{len(jobs) // len(methods)} seeds of CTRL on one reference; {c.steps} steps of {c.prompts} prompts x "
            f"{c.generations} responses by the solver `{c.solver}`, settled at KL {c.target_kl:g} on validation "
            f"prompts; K = {anchors}; measured on {len(measurement.kl)} test prompts. 95% intervals over prompts and "
            f"seeds. {origin}"
        )
        results = Results(measurements, anchors, methods)
        name.with_suffix(".md").write_text(write(results, settings), encoding="utf-8")
        rows = [describe(*each) for each in sorted(measurements, key=lambda each: (each[0].method.name, each[0].seed))]
        name.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        click.echo(f"{len(measurements)} of {len(jobs)}: {job.method.name}, seed {job.seed}", err=True)
    click.echo(write(results, settings))
    return results


@main.command()
@OUTPUT
@SEEDS
@WORKERS
@click.option("--steps", type=int, multiple=True, default=(60, 120, 240, 480, 960), help=f"Steps of {STEP} draws.")
@click.option("--width", "widths", type=int, multiple=True, default=(128, 256), help="Widths of the networks.")
def curves(output: Path, seeds: int, workers: int, steps: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Train with more and more draws, and draw the curves. What policies.json has is not trained again."""
    from training.configs import load_config

    anchors = load_config(str(STUDY), ()).rollouts.samples
    measured = Curves(output / "policies.json")
    for width in widths:
        jobs = list(measured.list_missing([Place(width, count) for count in steps], seeds))
        places = {job: place for place, job in jobs}
        for job, measurement in measure_policies([job for _, job in jobs], workers):
            measured.add(places[job], job, measurement)
            click.echo(f"{places[job].draws} draws, width {width}: {job.method.name}, seed {job.seed}", err=True)
    results = measured.results(anchors)
    draw_curves(results, output / "curves.svg")
    text = write_curves(results)
    (output / "curves.md").write_text(text, encoding="utf-8")
    click.echo(text)


@main.command()
@OUTPUT
@click.option("--kl", type=click.FloatRange(0, 10, min_open=True), default=0.5, show_default=True, help="Nats.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the readers and of the draws.")
def reader(output: Path, kl: float, seed: int) -> None:
    """Measure what the knowledge of readers of whole responses is worth."""
    text = write_knowledge(make_reference(), kl, seed)
    (output / "reader.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
