"""Shards of the rollouts: so many prompts, drawn and scored together.

A shard's seed is made from the run's seed and the shard's number, so that a shard comes out the same wherever and
whenever it is drawn: by this process, by its successor after a kill, by any actor of a cluster.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from infalign.errors import EngineFailed
from infalign.manifest import SamplingLaw
from infalign.templates import Message
from training.sampler import Sampler
from training.scorer import Scorers
from training.vllm_sampler import VllmSampler

Engine = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class Rollouts:
    """The scored responses to one prompt: a line of a shard's file."""

    prompt: Sequence[Message]
    responses: list[str]
    tokens: list[list[int]]
    rewards: list[float] | dict[str, list[float]]
    """Raw; of several reward models by name."""

    @property
    def scored(self) -> NDArray[np.float64]:
        """(K, M) raw rewards, models in the order of their calibrations."""
        each = (
            [self.rewards[name] for name in sorted(self.rewards)] if isinstance(self.rewards, dict) else [self.rewards]
        )
        return np.array(each, dtype=np.float64).T


@dataclass(frozen=True)
class Shard:
    """Prompts that are drawn together."""

    number: int
    prompts: Sequence[Sequence[Message]]

    def seed(self, seed: int) -> int:
        """Its own, made from the run's by a hash, since other stages draw with seed + 1 and seed + 2."""
        return int(np.random.SeedSequence(seed, spawn_key=(self.number,)).generate_state(1)[0])


def split(prompts: Sequence[Sequence[Message]], size: int) -> list[Shard]:
    """The prompts in order, ``size`` to a shard."""
    starts = range(0, len(prompts), size)
    return [Shard(number, prompts[start : start + size]) for number, start in enumerate(starts)]


@dataclass(frozen=True)
class Job:
    """What is drawn for every shard."""

    reference: Path
    reward: Path
    law: SamplingLaw
    engine: Engine
    samples: int
    seed: int


class Worker:
    """Draws and scores shards, by an engine and the reward models that it holds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        with _memory(f"{job.engine} did not start"):
            load = VllmSampler.load if job.engine == "vllm" else Sampler.load
            self.sampler = load(job.reference, job.law)  # before the rest: vLLM measures what memory is free
            self.scorers = Scorers.load(job.reward)

    def __call__(self, shard: Shard, stage: str) -> str:
        """The shard's file, a line of JSON to a prompt."""
        samples = self.job.samples
        repeated = [messages for messages in shard.prompts for _ in range(samples)]
        with _memory(f"rollouts, shard {shard.number}"):
            tokens = self.sampler.draw(repeated, shard.seed(self.job.seed), stage)
            responses = self.sampler.text(tokens)
            rewards = self.scorers.score(repeated, responses)
        lines = []
        for row, messages in enumerate(shard.prompts):
            drawn = slice(row * samples, (row + 1) * samples)
            scored = dict(zip(self.scorers.models, rewards[drawn].T.tolist(), strict=True))
            kept = scored if len(scored) > 1 else next(iter(scored.values()))
            lines.append(json.dumps(vars(Rollouts(messages, responses[drawn], tokens[drawn], kept))) + "\n")
        return "".join(lines)


@contextmanager
def _memory(doing: str) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EngineFailed(f"{doing}: out of memory; finished shards are kept") from error
