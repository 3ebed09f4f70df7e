"""Solvers: algorithms that train a policy to maximise E[Φ(C)] − β KL(π‖π_ref).

C is the quantile of a response's reward, Φ the transformation, and KL the divergence of the policy π from the
reference. A solver is a function in a module of its own, listed in :data:`SOLVERS`. What it leaves is near the target
KL; :mod:`training.solvers.settling` then moves it there.
"""

from collections.abc import Callable
from pathlib import Path

from training.solvers import ctrl, regression, rloo
from training.solvers.task import Task

Solver = Callable[[Task, Path], float]
"""Trains the policy of a task, saves it into a directory, and returns the β that it ended with."""
SOLVERS: dict[str, Solver] = {"ctrl": ctrl.solve, "rloo": rloo.solve, "regression": regression.solve}
"""Solvers by their names in a config."""

__all__ = ["SOLVERS", "Solver", "Task"]
