"""Solvers of E[Φ(C)] − β KL(π‖π_ref): each takes a task and leaves a policy on its way to the target KL.

A solver is one function in a module of its own, named in ``SOLVERS``.
"""

from collections.abc import Callable

from training.solvers import regression, rloo
from training.solvers.task import Solution, Task

Solver = Callable[[Task], Solution]
SOLVERS: dict[str, Solver] = {"rloo": rloo.solve, "regression": regression.solve}

__all__ = ["SOLVERS", "Solution", "Solver", "Task"]
