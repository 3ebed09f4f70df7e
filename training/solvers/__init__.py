"""Solvers of E[Φ(C)] − β KL(π‖π_ref): each takes a task and leaves a policy on its way to the target KL.

A solver is one function in a module of its own, named in ``SOLVERS``.
"""

from collections.abc import Callable
from pathlib import Path

from training.solvers import regression, rloo
from training.solvers.task import Task

Solver = Callable[[Task, Path], float]
"""Trains a policy, saves it into the directory, and says where β ended."""
SOLVERS: dict[str, Solver] = {"rloo": rloo.solve, "regression": regression.solve}

__all__ = ["SOLVERS", "Solver", "Task"]
