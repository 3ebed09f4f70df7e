"""Judges: scores of responses that are independent of the reward model, for evaluation alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infalign.errors import InvalidValue
from infalign.templates import Message
from training.data import corpus
from training.data.judge import judge

Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], NDArray[np.float64]]
"""(prompts, responses) -> scores, higher is better, shape (len(responses),)."""
HELPDESK = "helpdesk"


def load_judge(name: str) -> Judge:
    """``helpdesk``, the ground truth of the generated world, or the directory of a sequence classifier.

    Raises:
        InvalidValue: neither.
    """
    if name == HELPDESK:
        return helpdesk
    if not (Path(name) / "config.json").is_file():
        raise InvalidValue("judge", name, f"{HELPDESK}, or the directory of a sequence classifier with one output")
    from training.scorer import Scorer

    scorer = Scorer.load(Path(name))
    return lambda prompts, responses: scorer.score(prompts, responses).astype(np.float64)


def helpdesk(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float64]:
    """Scores by the rules that the generated world was written with.

    Raises:
        InvalidValue: a prompt that is not one of the world's.
    """
    by_text = {prompt.text: prompt for prompt in corpus.prompts()}
    scores = []
    for messages, response in zip(prompts, responses, strict=True):
        question = messages[-1]["content"]
        if question not in by_text:
            raise InvalidValue("judge", HELPDESK, f"a judge that knows the prompt {question[:60]!r}")
        scores.append(judge(by_text[question], response).score)
    return np.array(scores)
