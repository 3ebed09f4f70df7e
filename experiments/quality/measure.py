"""Measures all ways on the prompts of one bundle."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from experiments.quality.client import Answer, Client
from experiments.quality.figures import Curve, Measured
from experiments.quality.ways import CAP, Family, Way
from infalign.arrays import Floats
from infalign.calibration import Calibration
from infalign.templates import Message

RESOLUTION = 1e-3
"""Rewards that differ by less tie. The same text may get rewards that differ by less than that."""
T = TypeVar("T")
Judge = Callable[[Sequence[Sequence[Message]], Sequence[str]], Floats]
"""Maps prompts and responses to scores."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    prompts: Sequence[Sequence[Message]]
    ways: Sequence[Way]
    family: Family
    draws: int
    """Responses of the reference per prompt that true quantiles are measured by. The server does not know them."""
    repeats: int
    """Requests per way and prompt, with different seeds."""
    clients: int = 1
    """Clients at the same time, each with prompts of its own and one request at a time."""
    seed: int = 0

    def map_prompts(self, work: Callable[[int], T]) -> list[T]:
        """Do some work for the place of each prompt. The clients share it."""
        with ThreadPoolExecutor(self.clients) as pool:
            return list(pool.map(work, range(len(self.prompts))))


class Reference:
    """The reference's responses to the prompts, by which selected answers are judged.

    Args:
        plan: What is measured.
        client: A server of the reference.
        judge: An independent judge, if there is one.
    """

    def __init__(self, plan: Plan, client: Client, judge: Judge | None) -> None:
        self._plan, self._judge = plan, judge
        self._rewards: list[Calibration] = []
        self._scores: list[Calibration] = []
        # The seed of no other request, so that no candidate is among these.
        rows = plan.map_prompts(
            lambda place: client.draw(plan.prompts[place], plan.draws, plan.seed + 10_000_000 + place * 1000)
        )
        for prompt, drawn in zip(plan.prompts, rows, strict=True):
            self._rewards.append(Calibration(np.array([one["reward"] for one in drawn]), resolution=RESOLUTION))
            if judge:
                scores = judge([prompt] * len(drawn), [one["text"] for one in drawn])
                self._scores.append(Calibration(scores, resolution=RESOLUTION))

    def quantile(self, place: int, rewards: Sequence[float]) -> Floats:
        """Return true quantiles of rewards at a prompt, counted so that 1 is best for the procedure."""
        quantiles = self._share_below(self._rewards[place], rewards)
        return quantiles if self._plan.family == "best" else 1 - quantiles

    def judge(self, place: int, texts: Sequence[str]) -> Floats | None:
        """Return the probability that the judge prefers each text to a response of the reference."""
        if self._judge is None:
            return None
        scores = self._judge([self._plan.prompts[place]] * len(texts), texts)
        return self._share_below(self._scores[place], scores)

    def _share_below(self, calibration: Calibration, values: Sequence[float] | Floats) -> Floats:
        return np.asarray(calibration.rank(values) / calibration.samples)


def measure_curve(plan: Plan, client: Client, reference: Reference) -> Curve:
    """Draw the candidates of fixed N.

    Args:
        plan: What is measured.
        client: The server.
        reference: Tells true quantiles.
    """
    rows = plan.map_prompts(lambda place: client.draw(plan.prompts[place], CAP, plan.seed + 20_000_000 + place * 1000))
    quantiles, tokens = [], []
    for place, drawn in enumerate(rows):
        quantiles.append(reference.quantile(place, [one["reward"] for one in drawn]))
        tokens.append(np.mean([one["completion_tokens"] for one in drawn]))
    return Curve(np.array(quantiles), np.array(tokens))


def measure_ways(
    plan: Plan, client: Client, reference: Reference, report: Callable[[str], None] = lambda _: None
) -> list[Measured]:
    """Measure every way.

    The ways take turns at each prompt, so that a busy machine does not slow one of them alone.

    Args:
        plan: What is measured.
        client: The server.
        reference: Tells true quantiles.
        report: Called with a line after each prompt.
    """

    def ask(place: int) -> list[list[Answer]]:
        seeds = [plan.seed + place * 100_000 + repeat * 1000 for repeat in range(plan.repeats)]
        answers = [
            [client.decode(way.path, plan.prompts[place], {**way.fields, "seed": seed}) for seed in seeds]
            for way in plan.ways
        ]
        report(f"prompt {place + 1} of {len(plan.prompts)}")
        return answers

    by_way = zip(*plan.map_prompts(ask), strict=True)
    return [_summarise(way, list(rows), reference) for way, rows in zip(plan.ways, by_way, strict=True)]


def _summarise(way: Way, rows: list[list[Answer]], reference: Reference) -> Measured:
    quantiles = [reference.quantile(i, [one.reward for one in row]).mean() for i, row in enumerate(rows)]
    judged = [reference.judge(i, [one.text for one in row]) for i, row in enumerate(rows)]
    known = [scores.mean() for scores in judged if scores is not None]
    return Measured(
        way,
        np.array(quantiles),
        np.array([[one.tokens for one in row] for row in rows]).mean(axis=1),
        np.array([[one.seconds for one in row] for row in rows]),
        np.array([[one.first_seconds for one in row] for row in rows]),
        np.array(known) if known else None,
    )
