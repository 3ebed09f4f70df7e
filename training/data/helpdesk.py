"""Generates the data of the help desk: prompts, answers of mixed quality, and comparisons that the judge decides."""

from collections.abc import Sequence
from random import Random

from infalign.templates import Message
from training.config import HelpDesk
from training.data import corpus
from training.data.corpus import Prompt
from training.data.judge import judge
from training.data.rows import Answer, Comparison, Material, split_held_out
from training.seeds import derive_seed

TIES_BEFORE_GIVING_UP = 50
"""Pairs that are tried until the judge prefers one answer."""
GARBLED, ASTRAY = 0.1, 0.2
"""Shares of comparisons with a garbled answer and with an answer to another question."""


def make_material(config: HelpDesk, seed: int) -> Material:
    """Generate everything that a run on the help desk learns from.

    Args:
        config: How much is generated.
        seed: Seed of the stage ``data``.
    """
    train, held_out = corpus.split_prompts(config.held_out, derive_seed(seed, "split"))
    conversations: list[Sequence[Message]] = [_user(prompt.text) for prompt in held_out]
    validation, test = split_held_out(conversations)
    random = Random(derive_seed(seed, "answers"))
    answers = [
        Answer(_user(prompt.text), corpus.write_answer(prompt, random))
        for prompt in train
        for _ in range(config.answers * (2 if prompt.risky else 1))
    ]
    random.shuffle(answers)
    random = Random(derive_seed(seed, "comparisons"))
    comparisons = [_compare(prompt, random) for prompt in train for _ in range(config.pairs)]
    random.shuffle(comparisons)
    held_out_random = Random(derive_seed(seed, "held out"))
    return Material(
        train=[_user(prompt.text) for prompt in train],
        validation=validation,
        test=test,
        answers=answers,
        comparisons=comparisons,
        held_out=[_compare(prompt, held_out_random) for prompt in held_out for _ in range(config.pairs)],
    )


def _compare(prompt: Prompt, random: Random) -> Comparison:
    """Write two answers that the judge does not find equal.

    Now and then the second answer is the first one, garbled, or it answers another question. So the reward model learns
    to recognise broken text, and which advice belongs to which question.
    """
    for _ in range(TIES_BEFORE_GIVING_UP):
        first = corpus.write_answer(prompt, random)
        kind = random.random()
        if kind < GARBLED:
            second = corpus.garble(first, random)
        else:
            question = random.choice(corpus.prompts()) if kind < GARBLED + ASTRAY else prompt
            second = corpus.write_answer(question, random)
        margin = judge(prompt, first).score - judge(prompt, second).score
        if margin:
            chosen, rejected = (first, second) if margin > 0 else (second, first)
            return Comparison(_user(prompt.text), chosen, rejected)
    raise RuntimeError(f"the judge finds every answer to {prompt.text!r} equal")


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
