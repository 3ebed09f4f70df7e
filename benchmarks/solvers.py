"""How fast the solvers draw and learn: responses per minute of `ctrl`, `ctrl` with vLLM, and TRL's RLOO, side by side.

    python -m benchmarks.solvers [--steps 8] [--rounds 3]

All start from the config's reference, rewards and calibration, which are trained first if they are not there, and use
the same steps, prompts and generations. They take turns, so that a busy machine slows none of them alone.
The first round is not counted: it warms up.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

SYSTEMS = {
    "ctrl": {"solver": "ctrl"},
    "ctrl, vllm": {"solver": "ctrl", "engine": "vllm"},
    "rloo": {"solver": "rloo"},
}
"""What is compared: keys of the section ``ctrl``."""


@click.command()
@click.option("--config", default="demo", show_default=True, help="Config of the run.")
@click.option("--steps", type=click.IntRange(2), default=8, show_default=True, help="Steps of each training.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each.")
@click.option(
    "--system",
    "systems",
    type=click.Choice(list(SYSTEMS)),
    multiple=True,
    help="Which; again for more.  [default: all]",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key; again for more.")
def main(config: str, steps: int, rounds: int, systems: Sequence[str], overrides: Sequence[str]) -> None:
    """Print responses per minute of each system, and ratios to the first."""
    from infalign.home import home
    from training.configs import load_config
    from training.ctrl import make_task
    from training.pipeline import run_stages
    from training.runtime import prepare_process
    from training.solvers import SOLVERS
    from training.stages.ctrl import AlignPolicy

    prepare_process()
    loaded = load_config(config, (*overrides, f"ctrl.steps={steps}"))
    artifacts = run_stages(loaded, home() / "runs", until="calibrate")
    seconds: dict[str, list[float]] = {system: [] for system in systems or SYSTEMS}
    for number in range(rounds + 1):
        for system, times in seconds.items():
            run = loaded.model_copy(update={"ctrl": loaded.alignment.model_copy(update=SYSTEMS[system])})
            with tempfile.TemporaryDirectory() as directory:
                task = make_task(Path(directory), **AlignPolicy().inputs(run, artifacts))
                start = time.perf_counter()
                SOLVERS[run.alignment.solver](task, Path(directory) / "model")
                if number:
                    times.append(time.perf_counter() - start)
    draws = steps * loaded.alignment.prompts * loaded.alignment.generations
    rates = {system: 60 * draws / float(np.median(times)) for system, times in seconds.items()}
    click.echo(f"{draws} responses, {steps} steps; median of {rounds} trainings, with start and end")
    first = next(iter(rates.values()))
    for system, rate in rates.items():
        click.echo(f"{system:>10}  {rate:10,.0f} responses/min  {rate / first:6.2f}")


if __name__ == "__main__":
    main()
