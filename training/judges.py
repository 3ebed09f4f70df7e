"""Judges: scores of responses that do not come from the reward model.

A judge is used in evaluations alone. It shows whether a higher reward means a better response, or whether the policy
only exploits the reward model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infalign.errors import InvalidValue
from infalign.templates import Message
from training.config.stages import HELPDESK
from training.data import corpus
from training.data.judge import judge

Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], NDArray[np.float64]]
"""Maps prompts and responses to scores of shape (len(responses),). Higher is better."""


def load_judge(name: str, output: int | None = None) -> Judge:
    """Load a judge.

    Args:
        name: ``helpdesk`` for the ground truth of the generated help desk, or the directory of a sequence classifier.
        output: Which output of the classifier is the score, counted from 0. It may be left out if there is only one.

    Returns:
        The judge.

    Raises:
        InvalidValue: There is no such judge or output, or the classifier cannot score conversations.
    """
    if name == HELPDESK:
        if output is not None:
            raise InvalidValue("--judge-output", output, f"nothing where the judge is {HELPDESK}, which has one score")
        return judge_helpdesk
    if not (Path(name) / "config.json").is_file():
        raise InvalidValue("judge", name, f"{HELPDESK}, or the directory of a sequence classifier")
    from training.models import CLASSIFIER, place, read_classifier
    from training.reading import check_reading
    from training.scorer import Scorer
    from training.tokenizer import read_tokenizer

    model = read_classifier(name, "judge")
    outputs = model.config.num_labels
    if output is None and outputs != 1:
        labels = ", ".join(f"{number} ({label})" for number, label in sorted(model.config.id2label.items()))
        raise InvalidValue(
            "judge", name, f"a classifier with one output, or --judge-output for one of its {outputs}: {labels}"
        )
    if output is not None and output >= outputs:
        raise InvalidValue("--judge-output", output, f"at most {outputs - 1}, the last output of {name}")
    tokenizer = read_tokenizer(name, "judge", CLASSIFIER)
    if not tokenizer.chat_template:
        raise InvalidValue("judge", name, "a classifier whose tokenizer has a chat template")
    scorer = Scorer(place(model), tokenizer, output or 0)
    check_reading(scorer, "judge", name, "Set pad_token_id in its config.json to a token that ends no conversation")
    return lambda prompts, responses: scorer.score(prompts, responses).astype(np.float64)


def judge_helpdesk(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float64]:
    """Score responses by the rules that the help desk was written with.

    Args:
        prompts: Conversations of the help desk.
        responses: A response to each prompt.

    Returns:
        Scores of shape (len(responses),); 10 is perfect, below 0 is harmful or broken.

    Raises:
        InvalidValue: A prompt does not belong to the help desk.
    """
    by_text = {prompt.text: prompt for prompt in corpus.prompts()}
    scores = []
    for messages, response in zip(prompts, responses, strict=True):
        question = messages[-1]["content"]
        if question not in by_text:
            raise InvalidValue("judge", HELPDESK, f"a judge that knows the prompt {question[:60]!r}")
        scores.append(judge(by_text[question], response).score)
    return np.array(scores)
