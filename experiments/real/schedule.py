"""The jobs of an experiment, side by side in several processes."""

import gc
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from experiments.real.configs import policy_config
from experiments.real.data import prepare_task
from experiments.real.measures import describe_reference, measure, measure_models
from experiments.real.report import compare
from experiments.real.stages import align, calibrate, train_model
from experiments.real.tasks import METHODS, PARTS, Method, Settings, Task


def start_worker(threads: int) -> None:
    """Prepare a process that does jobs."""
    import torch

    from training.runtime import prepare_process

    torch.set_num_threads(threads)
    prepare_process()


def do_job(job: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Do a job in a worker, and return its result and the seconds that it took.

    On a GPU, products of float32 matrices are done in TF32, which is several times as fast. Reward models are trained
    without it, as they are then checked to give a text one reward. bfloat16 is not used: by rounding alone, two equal
    policies would be some 0.1 nats apart.
    """
    import torch

    start = time.monotonic()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("highest" if job is train_model else "high")
    try:
        return job(*arguments), time.monotonic() - start
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the processes beside this one


class Experiment:
    """Runs the jobs of all tasks, as far as they do not wait for each other, and writes what is known.

    Args:
        pool: Processes that do the jobs.
        settings: What the command line says.
        output: Folder of the results.
    """

    def __init__(self, pool: ProcessPoolExecutor, settings: Settings, output: Path) -> None:
        self.pool, self.settings, self.output = pool, settings, output
        self.lock, self.start = threading.Lock(), time.monotonic()
        self.results: dict[str, Any] = {"seconds": {}}

    def run_task(self, task: Task, file: Path) -> None:
        """Run a task from its data to its figures."""
        settings = self.settings
        counts = self._do(f"{task.name}: data", prepare_task, task, file, settings)
        with ThreadPoolExecutor(len(METHODS) + 1) as threads:
            reward, judge = threads.map(
                lambda part: self._do(f"{task.name}: {part}", train_model, task, part, settings), PARTS
            )
            accuracy = threads.submit(self._do, f"{task.name}: accuracy", measure_models, task, reward, judge, settings)
            self._do(f"{task.name}: rollouts", calibrate, task, reward, settings)
            self._write(task, counts=counts, accuracy=accuracy.result())
            drawn: dict[str, dict[str, Any]] = {}
            samples = policy_config(task, METHODS[0], settings).rollouts.samples
            reference = threads.submit(
                self._do, f"{task.name}: reference", measure, task, None, reward, judge, settings
            )

            def follow(method: Method) -> None:
                self._do(f"{task.name}: {method.name}", align, task, method, reward, settings)
                figures = self._do(f"{task.name}: {method.name}, draws", measure, task, method, reward, judge, settings)
                drawn[""] = reference.result()
                with self.lock:
                    drawn[method.name] = figures
                    compared = compare(task, drawn, samples)
                self._write(task, samples=samples, **compared)

            policies = [threads.submit(follow, method) for method in METHODS]
            self._write(task, **describe_reference(reference.result()))
            for policy in policies:
                policy.result()

    def _do(self, name: str, job: Callable[..., Any], *arguments: Any) -> Any:
        """Have a process do a job, and note its time."""
        result, seconds = self.pool.submit(do_job, job, *arguments).result()
        with self.lock:
            self.results["seconds"][name] = round(seconds, 1)
        click.echo(f"{time.monotonic() - self.start:.0f} s: {name}, {seconds:.0f} s", err=True)
        return result

    def _write(self, task: Task, **figures: Any) -> None:
        """Add figures of a task, and write everything that is known into real.json."""
        with self.lock:
            self.results.setdefault(task.name, {"procedure": task.procedure}).update(figures)
            self.output.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.results, indent=1, default=asdict)
            (self.output / "real.json").write_text(text + "\n", encoding="utf-8")
