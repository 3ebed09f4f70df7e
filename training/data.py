"""Stage ``data``: the world's prompts, written answers and comparisons as JSONL in TRL's conversational format.

sft.jsonl          {prompt: messages, completion: messages}
preferences.jsonl  {prompt: messages, chosen: messages, rejected: messages}
prompts.jsonl      {prompt: messages, split: train | validation}
"""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from training import corpus
from training.config import Data
from training.corpus import Prompt
from training.judge import judge

SFT, PREFERENCES, PROMPTS = "sft.jsonl", "preferences.jsonl", "prompts.jsonl"
TIES_BEFORE_GIVING_UP = 50
GARBLED, ASTRAY = 0.05, 0.2


def write_data(directory: Path, config: Data, seed: int) -> None:
    """Generate the data set of the help desk into ``directory``."""
    train, validation = corpus.split_prompts(config.held_out, seed)
    random = Random(seed)
    answers = [
        {"prompt": _user(prompt.text), "completion": _assistant(corpus.write_answer(prompt, random))}
        for prompt in train
        for _ in range(config.answers * (2 if prompt.risky else 1))
    ]
    random.shuffle(answers)
    comparisons = [_compare(prompt, random) for prompt in train for _ in range(config.pairs)]
    random.shuffle(comparisons)
    _write(directory / SFT, answers)
    _write(directory / PREFERENCES, comparisons)
    _write(
        directory / PROMPTS,
        [
            {"prompt": _user(prompt.text), "split": split}
            for split, group in (("train", train), ("validation", validation))
            for prompt in group
        ],
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_prompts(directory: Path, split: str | None = None) -> list[list[dict[str, str]]]:
    """The conversations of ``prompts.jsonl``, of one split or of all."""
    return [row["prompt"] for row in read_rows(directory / PROMPTS) if split in (None, row["split"])]


def _compare(prompt: Prompt, random: Random) -> dict[str, Any]:
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
            return {"prompt": _user(prompt.text), "chosen": _assistant(chosen), "rejected": _assistant(rejected)}
    raise RuntimeError(f"the judge finds every answer to {prompt.text!r} equal")


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
