"""The generated help desk: prompts, written answers of varied quality, and comparisons made with the judge."""

from collections.abc import Sequence
from random import Random

from infalign.templates import Message
from training.config import HelpDesk
from training.data import corpus
from training.data.corpus import Prompt
from training.data.judge import judge
from training.data.rows import Answer, Comparison, Material, thirds

TIES_BEFORE_GIVING_UP = 50
GARBLED, ASTRAY = 0.1, 0.2


def material(config: HelpDesk, seed: int) -> Material:
    """Generate the data set of the help desk."""
    train, held_out = corpus.split_prompts(config.held_out, seed)
    asked: list[Sequence[Message]] = [_user(prompt.text) for prompt in held_out]
    validation, test = thirds(asked)
    random = Random(seed)
    answers = [
        Answer(_user(prompt.text), corpus.write_answer(prompt, random))
        for prompt in train
        for _ in range(config.answers * (2 if prompt.risky else 1))
    ]
    random.shuffle(answers)
    comparisons = [_compare(prompt, random) for prompt in train for _ in range(config.pairs)]
    random.shuffle(comparisons)
    unseen = Random(f"{seed} held out")
    return Material(
        train=[_user(prompt.text) for prompt in train],
        validation=validation,
        test=test,
        answers=answers,
        comparisons=comparisons,
        held_out=[_compare(prompt, unseen) for prompt in held_out for _ in range(config.pairs)],
    )


def _compare(prompt: Prompt, random: Random) -> Comparison:
    """Two written answers that the judge does not find equal, the better one as ``chosen``.

    Now and then the second is the first, garbled, or an answer to another question: the reward model must know broken
    text when it sees it, and which advice belongs to which question.
    """
    for _ in range(TIES_BEFORE_GIVING_UP):
        first = corpus.write_answer(prompt, random)
        kind = random.random()
        if kind < GARBLED:
            second = corpus.garble(first, random)
        else:
            asked = random.choice(corpus.prompts()) if kind < GARBLED + ASTRAY else prompt
            second = corpus.write_answer(asked, random)
        margin = judge(prompt, first).score - judge(prompt, second).score
        if margin:
            chosen, rejected = (first, second) if margin > 0 else (second, first)
            return Comparison(_user(prompt.text), chosen, rejected)
    raise RuntimeError(f"the judge finds every answer to {prompt.text!r} equal")


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
