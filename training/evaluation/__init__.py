"""What a policy reached on prompts it was not trained on, with intervals, and what theory says beside it."""

from training.evaluation.draws import Draws, Side, collect, load_draws, save_draws
from training.evaluation.figures import Decoded, Evaluation, evaluate

__all__ = ["Decoded", "Draws", "Evaluation", "Side", "collect", "evaluate", "load_draws", "save_draws"]
