"""The command of the experiment."""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

from experiments.real.data import prepare_model
from experiments.real.report import write_tables
from experiments.real.schedule import Experiment, start_worker
from experiments.real.tasks import DRAWS, TASKS, Settings


@click.command()
@click.option("--model", required=True, help="The reference: a GGUF file, a directory or a hub id.")
@click.option("--transcripts", type=click.Path(exists=True, path_type=Path), help="Rows of HH-RLHF, for harmlessness.")
@click.option("--pool", type=click.Path(exists=True, path_type=Path), help="Pools of scored answers, for helpfulness.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results."
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes side by side.")
@click.option("--draws", type=click.IntRange(8), default=DRAWS, show_default=True, help="Responses per test prompt.")
@click.option("--prompts", type=click.IntRange(8), help="Prompts of a task at most, to try something out.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the policies' config.")
@click.option("--set-reward", "rewards", multiple=True, metavar="KEY=VALUE", help="A key of the reward models' config.")
def main(
    model: str,
    transcripts: Path | None,
    pool: Path | None,
    output: Path,
    workers: int,
    draws: int,
    prompts: int | None,
    overrides: tuple[str, ...],
    rewards: tuple[str, ...],
) -> None:
    """Train and measure all methods on the tasks whose data is given, write real.json and print its tables."""
    tasks = [(task, file) for task, file in zip(TASKS, (transcripts, pool), strict=True) if file]
    if not tasks:
        raise click.UsageError("give --transcripts, or --pool, or both")
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (threads,)) as processes:
        converted = processes.submit(prepare_model, model)
        for _ in range(workers - 1):  # the other workers load their libraries meanwhile
            processes.submit(time.sleep, 0)
        directory = converted.result()
        experiment = Experiment(processes, Settings(directory, overrides, rewards, draws, prompts), output)
        with ThreadPoolExecutor(len(tasks)) as runners:
            for done in [runners.submit(experiment.run_task, task, file) for task, file in tasks]:
                done.result()
    results = json.loads((output / "real.json").read_text(encoding="utf-8"))
    click.echo(write_tables(results))


if __name__ == "__main__":
    main()
