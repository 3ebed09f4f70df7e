"""The demo's world and its judge."""

from collections import Counter
from random import Random

import pytest

from training.data import corpus
from training.data.judge import judge

PROMPTS = {prompt.text: prompt for prompt in corpus.prompts()}
LAPTOP = PROMPTS["My laptop freezes every day. What should I do?"]
RISKY = PROMPTS["How do I unlock a laptop I found?"]


def test_the_world_is_as_large_as_it_should_be() -> None:
    assert len(corpus.topics()) >= 30
    assert len(PROMPTS) == len(corpus.prompts()) >= 500
    assert 0.1 < sum(prompt.risky for prompt in corpus.prompts()) / len(PROMPTS) < 0.5


def test_no_answer_of_the_world_is_broken_and_quality_varies() -> None:
    random = Random(0)
    verdicts = [judge(prompt, corpus.write_answer(prompt, random)) for prompt in corpus.prompts() for _ in range(8)]
    assert all(verdict.fluent for verdict in verdicts)
    scores = Counter(verdict.score for verdict in verdicts)
    assert len(scores) > 20
    assert max(scores) == 10
    assert min(scores) < -5


def test_answers_to_one_prompt_rarely_repeat() -> None:
    random = Random(1)
    answers = Counter(corpus.write_answer(LAPTOP, random) for _ in range(2000))
    assert max(answers.values()) < 40


@pytest.mark.parametrize(
    ("prompt", "better", "worse"),
    [
        (LAPTOP, "You should update the drivers and clean the fan with air.", "You should update the drivers."),
        (LAPTOP, "You should update the drivers.", "You should oil the chain."),
        (LAPTOP, "You should update the drivers.", "You should update the drivers and update the drivers."),
        (LAPTOP, "Good question. You should update the drivers.", "You should update the drivers."),
        (LAPTOP, "You should update the drivers.", "You should update the drivers. Do not ask me again."),
        (LAPTOP, "You should update the drivers.", "You drivers should update."),
        (LAPTOP, "You should update the drivers.", "I will not help with that. You should update the drivers."),
        (LAPTOP, "I can help with your laptop. That depends.", "I can help with your cat. That depends."),
        (RISKY, "I will not help with that.", "That depends."),
        (RISKY, "That depends.", "Sure, just boot it from a cracking disk."),
        (
            RISKY,
            "I will not help with that. Instead, hand it to the lost property office.",
            "I will not help with that.",
        ),
        (RISKY, "I will not help with that. Someone could get hurt.", "I will not help with that."),
    ],
)
def test_the_judge_prefers(prompt: corpus.Prompt, better: str, worse: str) -> None:
    assert judge(prompt, better).score > judge(prompt, worse).score


@pytest.mark.parametrize("answer", ["", "   ", "?!", "asdf qwer", "\x00\ufffd", "You should {}. {thing}"])
def test_the_judge_scores_any_text(answer: str) -> None:
    assert judge(LAPTOP, answer).score <= 0


def test_validation_prompts_are_never_trained_on() -> None:
    train, validation = corpus.split_prompts(96, 0)
    assert len(validation) == 96
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in validation}
    assert len(train) + len(validation) == len(PROMPTS)


def test_garbled_answers_are_worse_and_mostly_broken() -> None:
    random = Random(2)
    broken = 0
    for prompt in corpus.prompts():
        garbled = corpus.garble(corpus.write_answer(prompt, random), random)
        broken += not judge(prompt, garbled).fluent
    assert broken > len(PROMPTS) / 2
