"""Rows of training data, and the files of the stage ``data``.

All but the report are JSON lines in TRL's conversational format:

sft.jsonl          {prompt: messages, completion: messages}
preferences.jsonl  {prompt: messages, chosen: messages, rejected: messages}, of training prompts
held_out.jsonl     the same, of the other prompts
prompts.jsonl      {prompt: messages, split: train | validation | test}
report.json        what was read, how long it is, and what was dropped for which reason
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
from training.data.defects import summarise
from training.data.examples import Example
from training.lengths import REPORT, TOKENS, describe_lengths
from training.seeds import derive_seed

SFT, PREFERENCES, HELD_OUT, PROMPTS = ("sft.jsonl", "preferences.jsonl", "held_out.jsonl", "prompts.jsonl")
FEWEST_PROMPTS, MOST_HELD_OUT = 8, 300
"""Fewest prompts of which some are held out, and most that are, where nobody says how many."""
Item = TypeVar("Item")
PromptKey = tuple[tuple[tuple[str, str], ...], ...]


class Answer(NamedTuple):
    """A response to a prompt, which the reference learns to write."""

    prompt: Sequence[Message]
    """The conversation."""
    text: str
    """The response."""


class Comparison(NamedTuple):
    """Two responses to one prompt."""

    prompt: Sequence[Message]
    """The conversation."""
    chosen: str
    """The better response."""
    rejected: str
    """The worse response."""


@dataclass
class Material:
    """Everything that a run learns from and is measured on. No prompt is in two splits."""

    train: list[Sequence[Message]]
    """Prompts that models are trained on."""
    validation: list[Sequence[Message]]
    """Prompts that the policy is settled on."""
    test: list[Sequence[Message]]
    """Prompts that the reported figures are measured on."""
    answers: list[Answer]
    """Answers to training prompts."""
    comparisons: list[Comparison]
    """Comparisons of responses to training prompts."""
    held_out: list[Comparison]
    """Comparisons of responses to the other prompts."""
    defects: Counter[str] = field(default_factory=Counter)
    """Number of rows that were dropped, by reason."""
    lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Tokens of every sequence, by kind; see :mod:`training.lengths`."""

    def check(self, parts: Iterable[str]) -> None:
        """Check that parts are not empty.

        Args:
            parts: Names of fields.

        Raises:
            InvalidValue: A part is empty.
        """
        for name in parts:
            if not getattr(self, name):
                raise InvalidValue("data", f"no {name} left", f"more data; dropped: {summarise(self.defects)}")

    def write(self, directory: Path) -> None:
        """Write all files of the stage into ``directory``."""
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
        """Count what there is and what was dropped."""
        prompts = [*self.train, *self.validation, *self.test]
        return {
            "train_prompts": len(self.train),
            "validation_prompts": len(self.validation),
            "test_prompts": len(self.test),
            "answers": len(self.answers),
            "comparisons": len(self.comparisons),
            "held_out_comparisons": len(self.held_out),
            "multi_turn": round(sum(len(prompt) > 1 for prompt in prompts) / max(len(prompts), 1), 4),
            TOKENS: describe_lengths(self.lengths),
            "dropped": dict(sorted(self.defects.items())),
        }


def split_examples(examples: list[Example], held_out: int | None, seed: int, defects: Counter[str]) -> Material:
    """Split examples into training, validation and test, so that all examples of a prompt stay together.

    Args:
        examples: Examples of all prompts.
        held_out: Number of prompts for validation and test together. None leaves it to :func:`count_held_out`.
        seed: Seed of the stage ``data``.
        defects: Number of rows that were dropped, by reason.

    Raises:
        InvalidValue: There are not more than ``held_out`` different prompts.
    """
    if not examples:
        raise InvalidValue("data", "no row that can be used", f"other rows; dropped: {summarise(defects)}")
    by_prompt: dict[PromptKey, list[Example]] = {}
    for example in examples:
        by_prompt.setdefault(_make_key(example.prompt), []).append(example)
    groups = list(by_prompt.values())
    if held_out is None:
        held_out = count_held_out(len(groups))
    if len(groups) <= held_out:
        reasons = f"; {defects.total()} rows were dropped: {summarise(defects)}" if defects else ""
        raise InvalidValue("held_out", held_out, f"fewer than the {len(groups)} different prompts there are{reasons}")
    Random(derive_seed(seed, "split")).shuffle(groups)
    held_out_groups, train = groups[:held_out], groups[held_out:]
    validation, test = split_held_out([group[0].prompt for group in held_out_groups])
    train_examples = [example for group in train for example in group]
    Random(derive_seed(seed, "order")).shuffle(train_examples)
    return Material(
        train=[group[0].prompt for group in train],
        validation=validation,
        test=test,
        answers=[Answer(example.prompt, text) for example in train_examples for text in example.answers],
        comparisons=_collect_comparisons(train_examples),
        held_out=_collect_comparisons(example for group in held_out_groups for example in group),
        defects=defects,
    )


def count_held_out(prompts: int) -> int:
    """Choose how many of so many prompts are held out for validation and test together.

    Example:
        >>> [count_held_out(prompts) for prompts in (7, 8, 40, 10_000)]
        [0, 2, 10, 300]
    """
    return min(prompts // 4, MOST_HELD_OUT) if prompts >= FEWEST_PROMPTS else 0


def _collect_comparisons(examples: Iterable[Example]) -> list[Comparison]:
    return [Comparison(example.prompt, *pair) for example in examples for pair in example.pairs]


def split_held_out(held_out: list[Item]) -> tuple[list[Item], list[Item]]:
    """Split held-out items into a third for validation and the rest for the test."""
    count = max(1, len(held_out) // 3)
    return held_out[:count], held_out[count:]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_prompts(directory: Path, split: str | None = None) -> list[list[dict[str, str]]]:
    """Read the conversations of ``prompts.jsonl``.

    Args:
        directory: Directory of the stage.
        split: ``train``, ``validation`` or ``test``; None for all.
    """
    return [row["prompt"] for row in read_rows(directory / PROMPTS) if split in (None, row["split"])]


def _make_key(prompt: Sequence[Message]) -> PromptKey:
    """Make the key of a prompt. Space around a message makes no other prompt: many chat templates leave it out."""
    return tuple(tuple(sorted((name, text.strip()) for name, text in message.items())) for message in prompt)


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
