"""How fast the solvers draw and learn: responses per minute of `ctrl` and of TRL's RLOO, on the demo, side by side.

    python -m benchmarks.solvers [--steps 8] [--rounds 3]

Both start from the demo's reference, rewards and calibration, which are trained first if they are not there, and use
the same steps, prompts and generations. They take turns, so that a busy machine slows none of them alone.
The first round is not counted: it warms up.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

SOLVERS = ("ctrl", "rloo")


@click.command()
@click.option("--config", default="demo", show_default=True, help="Config of the run.")
@click.option("--steps", type=click.IntRange(2), default=8, show_default=True, help="Steps of each training.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each solver.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key; again for more.")
def main(config: str, steps: int, rounds: int, overrides: Sequence[str]) -> None:
    """Print responses per minute of both solvers, and their ratio."""
    from infalign.home import home
    from training.configs import load_config
    from training.ctrl import make_task
    from training.pipeline import run_stages
    from training.runtime import prepare_process
    from training.solvers import SOLVERS as FUNCTIONS
    from training.stages.ctrl import AlignPolicy

    prepare_process()
    loaded = load_config(config, (*overrides, f"ctrl.steps={steps}"))
    artifacts = run_stages(loaded, home() / "runs", until="calibrate")
    seconds: dict[str, list[float]] = {solver: [] for solver in SOLVERS}
    for number in range(rounds + 1):
        for solver in SOLVERS:
            run = loaded.model_copy(update={"ctrl": loaded.alignment.model_copy(update={"solver": solver})})
            with tempfile.TemporaryDirectory() as directory:
                task = make_task(Path(directory), **AlignPolicy().inputs(run, artifacts))
                start = time.perf_counter()
                FUNCTIONS[solver](task, Path(directory) / "model")
                if number:
                    seconds[solver].append(time.perf_counter() - start)
    draws = steps * loaded.alignment.prompts * loaded.alignment.generations
    rates = {solver: 60 * draws / float(np.median(times)) for solver, times in seconds.items()}
    click.echo(f"{draws} responses, {steps} steps; median of {rounds} trainings, with start and end")
    for solver, rate in rates.items():
        click.echo(f"{solver:>6}  {rate:10,.0f} responses/min")
    click.echo(f" ratio  {rates['ctrl'] / rates['rloo']:10.2f}")


if __name__ == "__main__":
    main()
