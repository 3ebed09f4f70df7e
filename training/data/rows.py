"""Rows of training data, and the files of the stage ``data``, all JSONL in TRL's conversational format.

sft.jsonl          {prompt: messages, completion: messages}
preferences.jsonl  {prompt: messages, chosen: messages, rejected: messages}, of training prompts
held_out.jsonl     the same, of the other prompts
prompts.jsonl      {prompt: messages, split: train | validation | test}
report.json        what was read, how long it is, what was dropped and why
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from infalign.errors import InvalidValue
from infalign.templates import Message
from training.data.defects import summary
from training.data.examples import Example
from training.lengths import REPORT, TOKENS, describe

SFT, PREFERENCES, HELD_OUT, PROMPTS = ("sft.jsonl", "preferences.jsonl", "held_out.jsonl", "prompts.jsonl")
Item = TypeVar("Item")
Prompt = tuple[tuple[tuple[str, str], ...], ...]


class Answer(NamedTuple):
    """A written response to a prompt."""

    prompt: Sequence[Message]
    text: str


class Comparison(NamedTuple):
    """Two responses to one prompt, the better one first."""

    prompt: Sequence[Message]
    chosen: str
    rejected: str


@dataclass
class Material:
    """Everything a run is trained and validated on; no prompt is in both splits."""

    train: list[Sequence[Message]]
    validation: list[Sequence[Message]]
    """For steering and choosing."""
    test: list[Sequence[Message]]
    """For the figures that are reported."""
    answers: list[Answer]
    comparisons: list[Comparison]
    held_out: list[Comparison]
    defects: Counter[str] = field(default_factory=Counter)
    """Rows that were dropped, by reason."""
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Tokens of every prompt with room for its response, answer, and comparison; see :mod:`training.lengths`."""

    def check(self, needed: Iterable[str]) -> None:
        """See that there is something of every part that is ``needed``.

        Raises:
            InvalidValue: nothing is left of a part.
        """
        for name in needed:
            if not getattr(self, name):
                raise InvalidValue("data", f"no {name} left", f"more data; dropped: {summary(self.defects)}")

    def write(self, directory: Path) -> None:
        """Write every file of the stage."""
        _write(directory / SFT, ({"prompt": a.prompt, "completion": _assistant(a.text)} for a in self.answers))
        for name, group in ((PREFERENCES, self.comparisons), (HELD_OUT, self.held_out)):
            rows = (
                {"prompt": c.prompt, "chosen": _assistant(c.chosen), "rejected": _assistant(c.rejected)} for c in group
            )
            _write(directory / name, rows)
        splits = (("train", self.train), ("validation", self.validation), ("test", self.test))
        _write(directory / PROMPTS, ({"prompt": prompt, "split": name} for name, group in splits for prompt in group))
        (directory / REPORT).write_text(json.dumps(self.report(), indent=1) + "\n", encoding="utf-8")

    def report(self) -> dict[str, Any]:
        """Counts of what is there and of what was dropped."""
        prompts = [*self.train, *self.validation, *self.test]
        return {
            "train_prompts": len(self.train),
            "validation_prompts": len(self.validation),
            "test_prompts": len(self.test),
            "answers": len(self.answers),
            "comparisons": len(self.comparisons),
            "held_out_comparisons": len(self.held_out),
            "multi_turn": round(sum(len(prompt) > 1 for prompt in prompts) / max(len(prompts), 1), 4),
            TOKENS: describe(self.lengths),
            "dropped": dict(sorted(self.defects.items())),
        }


def split(examples: list[Example], held_out: int, seed: int, defects: Counter[str]) -> Material:
    """Prompts at random: ``held_out`` for validation and test, the rest for training, each with all that is known.

    Raises:
        InvalidValue: fewer than ``held_out`` + 1 different prompts.
    """
    if not examples:
        raise InvalidValue("data", "no row that can be used", f"other rows; dropped: {summary(defects)}")
    by_prompt: dict[Prompt, list[Example]] = {}
    for example in examples:
        by_prompt.setdefault(_hashable(example.prompt), []).append(example)
    groups = list(by_prompt.values())
    if len(groups) <= held_out:
        dropped = f"; {defects.total()} rows were dropped: {summary(defects)}" if defects else ""
        raise InvalidValue("held_out", held_out, f"fewer than the {len(groups)} different prompts there are{dropped}")
    Random(seed).shuffle(groups)
    kept, train = groups[:held_out], groups[held_out:]
    validation, test = thirds([group[0].prompt for group in kept])
    learnt = [example for group in train for example in group]
    Random(seed + 1).shuffle(learnt)
    return Material(
        train=[group[0].prompt for group in train],
        validation=validation,
        test=test,
        answers=[Answer(example.prompt, text) for example in learnt for text in example.answers],
        comparisons=_comparisons(learnt),
        held_out=_comparisons(example for group in kept for example in group),
        defects=defects,
    )


def _comparisons(examples: Iterable[Example]) -> list[Comparison]:
    return [Comparison(example.prompt, *pair) for example in examples for pair in example.pairs]


def thirds(held_out: list[Item]) -> tuple[list[Item], list[Item]]:
    """A third of what is held out for validation, the rest for the test."""
    count = max(1, len(held_out) // 3)
    return held_out[:count], held_out[count:]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_prompts(directory: Path, split: str | None = None) -> list[list[dict[str, str]]]:
    """The conversations of ``prompts.jsonl``, of one split or of all."""
    return [row["prompt"] for row in read_rows(directory / PROMPTS) if split in (None, row["split"])]


def _hashable(prompt: Sequence[Message]) -> Prompt:
    return tuple(tuple(sorted(message.items())) for message in prompt)


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
