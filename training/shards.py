"""Shards of the rollouts: prompts that are drawn, scored and written together.

The seed of a shard depends only on the seed of the stage and the number of the shard. So a shard comes out the same
wherever and whenever it is drawn: in this process, in the next run after a kill, or on any node of a cluster.
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

from infalign.errors import EngineFailed, InvalidValue
from infalign.manifest import SamplingLaw
from infalign.reasoning import ATTEMPTS
from infalign.templates import Message
from training.answers import ScoredTexts
from training.sampler import Sampler
from training.scorer import Scorers
from training.seeds import derive_seed
from training.vllm_sampler import VllmSampler

Engine = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class PromptRollouts:
    """The scored responses to one prompt. They are a line in the file of a shard."""

    prompt: Sequence[Message]
    """The conversation."""
    responses: list[str]
    """K responses as text, as rewards read them: without reasoning, if there is a parser."""
    tokens: list[list[int]]
    """The same responses as token ids, with all that was drawn."""
    rewards: list[float] | dict[str, list[float]]
    """Raw rewards of the responses. If there are several reward models, they are given by name."""

    @property
    def reward_matrix(self) -> NDArray[np.float64]:
        """Raw rewards of shape (K, M), with the M models in the order of their calibration tables."""
        each = (
            [self.rewards[name] for name in sorted(self.rewards)] if isinstance(self.rewards, dict) else [self.rewards]
        )
        return np.array(each, dtype=np.float64).T


@dataclass(frozen=True)
class Shard:
    """Prompts that are drawn together."""

    number: int
    """Place of the shard among all shards, from 0."""
    prompts: Sequence[Sequence[Message]]
    """Conversations."""


def split_shards(prompts: Sequence[Sequence[Message]], size: int) -> list[Shard]:
    """Split prompts into shards, in order.

    Args:
        prompts: Conversations.
        size: Prompts per shard.
    """
    starts = range(0, len(prompts), size)
    return [Shard(number, prompts[start : start + size]) for number, start in enumerate(starts)]


@dataclass(frozen=True)
class RolloutJob:
    """What is drawn for every prompt."""

    reference: Path
    """Directory of the reference model."""
    reward: Path
    """Directory of the reward model, or of several."""
    law: SamplingLaw
    """Sampling law."""
    engine: Engine
    """Library that draws."""
    samples: int
    """K, responses per prompt."""
    seed: int
    """Seed of the stage. The seed of every shard is derived from it."""
    reasoning_parser: str | None = None
    """vLLM's parser that separates reasoning from the answers that are scored, if there is one."""


class ShardWorker:
    """Draws and scores shards with models that it loads once.

    Args:
        job: What is drawn.

    Raises:
        EngineFailed: The models do not fit into memory.
        InvalidValue: There is no such parser of reasoning, or it does not fit the reference.
    """

    def __init__(self, job: RolloutJob) -> None:
        self.job = job
        with _name_lack_of_memory(f"{job.engine} did not start"):
            load = VllmSampler.load if job.engine == "vllm" else Sampler.load
            self.sampler = load(job.reference, job.law)  # before the rest: vLLM measures what memory is free
            self.scorers = Scorers.load(job.reward, job.reference, self.sampler.next_logprobs)
        self.texts = ScoredTexts.load(job.reasoning_parser, job.reference, has_vllm=job.engine == "vllm")

    def __call__(self, shard: Shard, stage: str) -> str:
        """Draw and score one shard.

        Args:
            shard: The shard.
            stage: Name that the progress bar shows.

        Returns:
            Contents of the shard's file: a line of JSON per prompt.

        Raises:
            EngineFailed: Memory ran out.
            InvalidValue: The reasoning of a response takes more than the length limit, however often it is drawn.
        """
        samples = self.job.samples
        repeats = [messages for messages in shard.prompts for _ in range(samples)]
        with _name_lack_of_memory(f"rollouts, shard {shard.number}"):
            tokens = self.sampler.draw(repeats, derive_seed(self.job.seed, f"shard {shard.number}"), stage)
            responses = self._read_answers(shard, repeats, tokens, stage) if self.texts else self.sampler.text(tokens)
            rewards = self.scorers.score(repeats, responses)
        lines = []
        for row, messages in enumerate(shard.prompts):
            rows = slice(row * samples, (row + 1) * samples)
            by_model = dict(zip(self.scorers.models, rewards[rows].T.tolist(), strict=True))
            rewards_field = by_model if len(by_model) > 1 else next(iter(by_model.values()))
            lines.append(
                json.dumps(vars(PromptRollouts(messages, responses[rows], tokens[rows], rewards_field))) + "\n"
            )
        return "".join(lines)

    def _read_answers(
        self, shard: Shard, repeats: Sequence[Sequence[Message]], tokens: list[list[int]], stage: str
    ) -> list[str]:
        """Read the answers, and draw those anew whose reasoning did not end. ``tokens`` is changed."""
        assert self.texts is not None  # noqa: S101 - there is a parser
        answers = dict(enumerate(self.texts.read(repeats, tokens)))
        for attempt in range(1, ATTEMPTS + 1):
            missing = [row for row, answer in answers.items() if answer is None]
            if not missing:
                break
            if attempt == ATTEMPTS:
                requirement = f"more, for {len(missing)} of {len(tokens)} responses whose reasoning took more each time"
                raise InvalidValue("rollouts.max_tokens", self.job.law.max_tokens, requirement)
            again = [repeats[row] for row in missing]
            drawn = self.sampler.draw(again, derive_seed(self.job.seed, f"shard {shard.number}, {attempt}"), stage)
            answers.update(zip(missing, self.texts.read(again, drawn), strict=True))
            for row, response in zip(missing, drawn, strict=True):
                tokens[row] = response
        return [answer for answer in answers.values() if answer is not None]


@contextmanager
def _name_lack_of_memory(doing: str) -> Iterator[None]:
    """Report a lack of memory as one line that says what was being done."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EngineFailed(f"{doing}: out of memory; finished shards are kept") from error
