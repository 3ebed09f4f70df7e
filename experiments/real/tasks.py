"""What is compared: tasks, methods and models."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import log10
from pathlib import Path
from random import Random
from typing import NamedTuple

from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN

PROCEDURES: tuple[Procedure, ...] = (Standard(), BestOfN(4), WorstOfN(4))
"""Procedures that policies are measured under."""
DRAWS = 64
"""Responses per test prompt and model."""
PAIRS, MEASURED = 8, 2
"""Comparisons per prompt and half of a pool, and every which of them measures accuracy if the prompt is held out."""
DECEIVERS = ("NullModel", "gpt4_gamed")
"""Systems of the pool whose answers were made to deceive its judge."""
LEAST_SCORE = 1e-6
"""Scores of a pool below this are taken for this."""
PARTS = ("reward", "judge")
"""The two models that learn from comparisons: the one that is maximised and selects, and the one that only judges."""


class Comparison(NamedTuple):
    """Two responses to one prompt."""

    prompt: list[dict[str, str]]
    """The conversation."""
    chosen: str
    """The better response."""
    rejected: str
    """The worse response."""
    half: int
    """Which of the two models may learn from it: 0 for the reward model, 1 for the judge."""


@dataclass(frozen=True)
class Task:
    """What is aligned for what."""

    name: str
    """Name of the task."""
    procedure: str
    """Decoding procedure that the policy is aligned for."""
    prompts: int
    """Prompts of the policies, at most: to train, validate and test."""
    read: Callable[[Path, Random], Iterator[Comparison]]
    """Reads the comparisons of a file."""


@dataclass(frozen=True)
class Method:
    """What is maximised."""

    name: str
    """Name of the method."""
    transformation: str
    """The transformation Φ."""
    aligned: bool
    """Whether Φ is made for the procedure of the task. If not, it is for a single draw."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    model: str
    """Directory or hub id of the reference."""
    overrides: tuple[str, ...] = ()
    """Keys of the policies' config, as ``key=value``."""
    reward_overrides: tuple[str, ...] = ()
    """Keys of the reward models' config, as ``key=value``."""
    draws: int = DRAWS
    """Responses per test prompt and model."""
    prompts: int | None = None
    """Prompts of the policies of a task, if fewer than all."""


METHODS = (
    Method("CTRL optimal", "optimal", True),
    Method("calibrated identity", "identity", False),
    Method("RLHF, raw reward", "gaussian", False),
)
CLAIMS = (("CTRL optimal", "calibrated identity"), ("CTRL optimal", "RLHF, raw reward"))


def read_transcripts(file: Path, random: Random) -> Iterator[Comparison]:
    """Read the comparisons of HH-RLHF. Each prompt has one, so prompts alternate between the halves."""
    from training.data.examples import parse_transcript, read_examples
    from training.data.files import read_files

    examples, _ = read_examples(read_files([str(file)]), parse_transcript)
    random.shuffle(examples)
    for number, example in enumerate(examples):
        for chosen, rejected in example.pairs:
            yield Comparison(list(example.prompt), chosen, rejected, number % 2)


def read_pools(file: Path, random: Random) -> Iterator[Comparison]:
    """Read comparisons of the answers of a pool whose scores differ by about a factor of ten or more.

    The scores are probabilities that a language model prefers the answer to a fixed one, and most are near zero. Only
    their order of magnitude says something. The systems that answered are split into two halves by their names.
    """
    from training.data.files import read_files

    for row in read_files([str(file)]):
        answers = sorted(
            (answer["model"], answer["text"].strip(), round(log10(max(answer["score"], LEAST_SCORE))))
            for answer in row["responses"]
            if answer["model"] not in DECEIVERS
        )
        for half in (0, 1):
            pairs = [
                (first, second) if first[2] > second[2] else (second, first)
                for first, second in combinations(answers[half::2], 2)
                if first[2] != second[2] and first[1] and second[1]
            ]
            for better, worse in random.sample(pairs, min(PAIRS, len(pairs))):
                yield Comparison([{"role": "user", "content": row["prompt"]}], better[1], worse[1], half)


TASKS = (
    Task("harmless", "worst-of-4", 480, read_transcripts),
    Task("helpful", "best-of-4", 400, read_pools),
)
