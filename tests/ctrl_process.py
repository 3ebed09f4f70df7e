"""One process of a run of the solver ctrl: ``python -m tests.ctrl_process TASK DIRECTORY``.

It takes its share of the draws that a run of one process would take, so that runs of any number can be compared.
"""

import sys
from dataclasses import replace
from pathlib import Path

from tests.tiny import load_tiny_task
from training import processes
from training.sampler import Sampler
from training.solvers import Task, ctrl
from training.solvers.draws import Drawer, Draws


class WholeDrawer(Drawer):
    """Draws what all processes draw, and keeps its share."""

    def __init__(self, task: Task, sampler: Sampler, rank: int, count: int) -> None:
        super().__init__(task, sampler)
        size = task.config.prompts * task.config.generations // count
        self._share = slice(rank * size, (rank + 1) * size)

    def draw(self, step: int) -> Draws:
        whole, share = super().draw(step), self._share
        return Draws(whole.prompts[share], whole.responses[share], whole.quantiles[share], whole.rewards[share])


if __name__ == "__main__":
    made, directory = map(Path, sys.argv[1:])
    ctrl.Drawer = WholeDrawer  # type: ignore[misc]
    if processes.is_first():
        directory.mkdir()
    ctrl.solve(replace(load_tiny_task(made), directory=directory), directory / "model")
