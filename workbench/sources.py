"""Where samples come from: drawn for a prompt, drawn for an augmented prompt, or given in a file."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.augmentations import Augmentation
from workbench.connection import Connection
from workbench.prompts import Prompt
from workbench.samples import Sample

MOST_PER_REQUEST = 32
"""Samples that one request asks for at most. A run that is killed loses those of the requests under way."""
SEEDS = 2**61
"""Seeds that first samples are spread over."""


@dataclass(frozen=True)
class Sampling:
    """How samples are made."""

    model: str
    """Name of the policy on the server."""
    bundle: str
    """Hashes of the policy, and of what rewards and quantiles depend on."""
    seed: int = 0
    calibrate: bool = False
    """Whether each prompt is calibrated first, which takes K draws from the reference."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of requests, such as ``temperature``. What is left out is as in the bundle's sampling law."""

    def seed_of(self, prompt: Prompt) -> int:
        """Return the seed of a prompt's first sample. The seeds of two prompts have nothing in common."""
        return (self.seed * 0x9E3779B97F4A7C15 + int(prompt.id, 16)) % SEEDS


class Source(ABC):
    """Makes the samples of a campaign.

    Args:
        connection: Connection to the server.
        sampling: How samples are made.
    """

    per_request = MOST_PER_REQUEST
    """Samples of one call of :meth:`ask` at most."""
    repeats_prompt = True
    """Whether all calls for a prompt send the same text, so that one that is refused speaks for all."""

    def __init__(self, connection: Connection, sampling: Sampling) -> None:
        self.connection, self.sampling = connection, sampling

    @abstractmethod
    async def ask(self, prompt: Prompt, indices: range) -> list[Sample]:
        """Ask the server for samples of a prompt.

        Args:
            prompt: The prompt.
            indices: Which samples.

        Returns:
            The samples. Those that the server could not make are left out.

        Raises:
            WorkbenchError: The request failed as a whole.
        """

    async def _draw(self, messages: Sequence[Mapping[str, Any]], n: int, seed: int, calibrate: bool) -> dict[str, Any]:
        body = {
            **self.sampling.fields,
            "model": self.sampling.model,
            "messages": messages,
            "n": n,
            "seed": seed,
            "calibrate": calibrate,
            "min_candidates": 1,
            "return_candidates": True,
        }
        return await self.connection.post("/v1/worst-of-n", body)

    async def _score(self, prompt: Prompt, responses: Sequence[str]) -> dict[str, Any]:
        body = {
            "model": self.sampling.model,
            "messages": prompt.messages,
            "responses": responses,
            "calibrate": self.sampling.calibrate,
        }
        return await self.connection.post("/v1/rewards", body)

    def _make_sample(
        self,
        prompt: Prompt,
        index: int,
        reward: Mapping[str, Any],
        calibration: Mapping[str, Any],
        text: str,
        **others: Any,
    ) -> Sample:
        scores = {name: reward[name] for name in ("reward", "quantile", "quantile_low", "quantile_high")}
        return Sample(
            prompt_id=prompt.id,
            index=index,
            prompt=prompt.text,
            text=text,
            **scores,
            scope=calibration["scope"],
            anchors=calibration["samples"],
            model=self.sampling.model,
            bundle=self.sampling.bundle,
            **{"tags": json.dumps(dict(prompt.tags), ensure_ascii=False), **others},
        )


class Draws(Source):
    """Draws candidates, and keeps all of them."""

    async def ask(self, prompt: Prompt, indices: range) -> list[Sample]:
        """Draw candidates of a prompt. See :meth:`Source.ask`."""
        first = self.sampling.seed_of(prompt)
        answer = await self._draw(prompt.messages, len(indices), first + indices.start, self.sampling.calibrate)
        calibration = answer["calibration"]
        return [
            self._make_sample(prompt, candidate["seed"] - first, candidate, calibration, **_facts(candidate))
            for candidate in answer["candidates"]
        ]


class AugmentedDraws(Source):
    """Draws each response to a differently augmented prompt, and scores it as a response to the prompt itself.

    Args:
        connection: Connection to the server.
        sampling: How samples are made.
        augmentation: How prompts are augmented.
    """

    per_request = 1
    repeats_prompt = False

    def __init__(self, connection: Connection, sampling: Sampling, augmentation: Augmentation) -> None:
        super().__init__(connection, sampling)
        self.augmentation = augmentation

    async def ask(self, prompt: Prompt, indices: range) -> list[Sample]:
        """Draw and score one response. See :meth:`Source.ask`."""
        [index] = indices
        augmented = self.augmentation.apply(prompt.last_text, f"{self.sampling.seed} {prompt.id} {index}")
        seed = self.sampling.seed_of(prompt) + index
        answer = await self._draw(prompt.replace_last(augmented), 1, seed, calibrate=False)
        [candidate] = answer["candidates"]
        score = await self._score(prompt, [candidate["text"]])
        others = {"augmented": augmented, "augmentation": str(self.augmentation), **_facts(candidate)}
        return [self._make_sample(prompt, index, score["rewards"][0], score["calibration"], **others)]


class GivenResponses(Source):
    """Scores responses of a file.

    Args:
        connection: Connection to the server.
        sampling: How samples are made.
        responses: Text and tags of the responses to each prompt, by the id of the prompt.
    """

    repeats_prompt = False

    def __init__(
        self,
        connection: Connection,
        sampling: Sampling,
        responses: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]],
    ) -> None:
        super().__init__(connection, sampling)
        self.responses = responses

    async def ask(self, prompt: Prompt, indices: range) -> list[Sample]:
        """Score responses to a prompt. See :meth:`Source.ask`."""
        given = [self.responses[prompt.id][index] for index in indices]
        answer = await self._score(prompt, [text for text, _ in given])
        calibration = answer["calibration"]
        return [
            self._make_sample(prompt, index, reward, calibration, text, tags=json.dumps(dict(tags), ensure_ascii=False))
            for index, reward, (text, tags) in zip(indices, answer["rewards"], given, strict=True)
        ]


def _facts(candidate: Mapping[str, Any]) -> dict[str, Any]:
    return {name: candidate[name] for name in ("text", "finish_reason", "completion_tokens", "seed")}
