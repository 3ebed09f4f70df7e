"""Evaluations: what a policy reaches on prompts that it was not trained on, beside the theoretical optimum."""

from training.evaluation.draws import Draws, Side, collect, load_draws, save_draws
from training.evaluation.figures import Evaluation, ProcedureFigures, compute_evaluation

__all__ = [
    "Draws",
    "Evaluation",
    "ProcedureFigures",
    "Side",
    "collect",
    "compute_evaluation",
    "load_draws",
    "save_draws",
]
