"""Finds the calibration of a prompt: the reference rewards that its quantiles are computed from.

A calibration comes from the bundle or from draws on demand. If the prompt has none, it comes from the prefix scorer, if
that is asked for, or from all prompts pooled.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from infalign.bundle import Bundle
from infalign.calibration import Calibration
from infalign.combination import Combination
from infalign.manifest import CalibrationRecord
from infalign.pooling import PooledQuantiles
from infalign.reasoning import ATTEMPTS
from infalign.table import CalibrationTable
from server.concurrency import Shared, gather_all
from server.decoding.engine_client import EngineClient
from server.decoding.prefixes import Prefixes
from server.decoding.reader import Prompt
from server.decoding.store import Rewards, Store
from server.engines import Sampling
from server.errors import NoAnswer, PromptTooLong

Source = Literal["bundle", "cache", "drawn", "predicted", "pooled"]
"""Where reference rewards come from: the bundle, the store, draws just now, the prefix scorer, or other prompts."""
DEPENDS_ON = {"reference", "reward_model", "chat_template", "sampling", "samples", "resolution", "reasoning_parser"}
"""Fields of the bundle's calibration record on which reference rewards depend."""


def calibration_digest(record: CalibrationRecord) -> str:
    """Return a hash of everything that a calibration depends on, except its prompt."""
    return hashlib.sha256(record.model_dump_json(include=DEPENDS_ON, exclude_none=True).encode()).hexdigest()


@dataclass(frozen=True)
class ReferenceRewards:
    """Reference rewards for a prompt, and where they come from."""

    key: str
    combination: Combination
    source: Source
    predicted: Calibration | None = None
    """The calibration that the prefix scorer predicts, if the source is the scorer."""

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of the prompt (scope ``prompt``), its prediction, or that of all prompts (``global``)."""
        return self.predicted or self.combination.table.lookup(self.key)


class Calibrator:
    """Finds calibrations, and draws those that the bundle does not have.

    Args:
        bundle: The bundle, with the calibrations of its prompts.
        client: Draws and scores reference responses.
        store: Keeps the calibrations that were drawn.
        concurrency: The most reference draws at a time, over all calibrations.
    """

    def __init__(self, bundle: Bundle, client: EngineClient, store: Store, concurrency: int) -> None:
        self._combination, self._record = bundle.combination, bundle.calibration
        self._client, self._store, self._metrics = client, store, client.metrics
        self._gate = asyncio.Semaphore(concurrency)
        self._work: Shared[ReferenceRewards] = Shared()
        self._pooled_quantiles: PooledQuantiles | None = None
        _ = self._combination.table.pooled_calibration  # computed now, so that the first request does not wait for it

    async def find(self, prompt: Prompt) -> ReferenceRewards:
        """Return the reference rewards for a prompt, or those of all prompts pooled if it is not calibrated."""
        own = self._find_in_bundle(prompt) or await self._find_in_store(prompt)
        return own or ReferenceRewards(prompt.key, self._combination, "pooled")

    async def calibrate(self, prompt: Prompt) -> ReferenceRewards:
        """Return the reference rewards for a prompt. Draw them now if there are none.

        Callers that calibrate the same prompt at the same time share the draws. The draws are cancelled when no caller
        waits for them.

        Raises:
            PromptTooLong: Prompt and response do not fit the context under the calibration's sampling law.
            NoAnswer: The reference hardly ever comes to an answer under that law.
            EngineError: A live engine failed at a reference response. Nothing is kept then.
            Unavailable: The engines are not up, or have died.
        """
        return self._find_in_bundle(prompt) or await self._work.get(prompt.key, lambda: self._find_or_draw(prompt))

    async def predict(self, prompt: Prompt, prefixes: Prefixes) -> ReferenceRewards:
        """Return the reference rewards for a prompt. If it is not calibrated, return those that the scorer predicts.

        Args:
            prompt: The prompt.
            prefixes: Reads the prompt with the prefix scorer. The bundle has one reward model: the scorer predicts
                what several combine to for a calibrated prompt, which is on another scale than for this one.

        Raises:
            EngineError: The prefix scorer is alive but failed at this prompt.
            Unavailable: The prefix scorer is not up, or has died.
        """
        found = await self.find(prompt)
        if found.source != "pooled":
            return found
        return replace(found, source="predicted", predicted=await prefixes.calibration(prompt, self._combination.table))

    async def pooled_quantiles(self) -> PooledQuantiles:
        """Return what pooled quantiles say about the prompts' own. It is computed once, in a thread."""
        if self._pooled_quantiles is None:
            self._pooled_quantiles = await asyncio.to_thread(PooledQuantiles.of, self._combination)
        return self._pooled_quantiles

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    def _find_in_bundle(self, prompt: Prompt) -> ReferenceRewards | None:
        return (
            ReferenceRewards(prompt.key, self._combination, "bundle") if prompt.key in self._combination.table else None
        )

    async def _find_in_store(self, prompt: Prompt) -> ReferenceRewards | None:
        rewards = await self._store.get(prompt.key)
        return None if rewards is None else self._make_references(prompt, rewards, "cache")

    async def _find_or_draw(self, prompt: Prompt) -> ReferenceRewards:
        if references := await self._find_in_store(prompt):
            return references
        with self._metrics.calibrations_in_progress.track_inprogress():
            start = time.perf_counter()
            rewards = await self._draw(prompt)
            self._metrics.calibration_seconds.observe(time.perf_counter() - start)
        # Before the rewards are stored, because it refuses those that are not finite.
        references = self._make_references(prompt, rewards, "drawn")
        await self._store.put(prompt.key, rewards)
        return references

    async def _draw(self, prompt: Prompt) -> Rewards:
        """Draw and score K reference responses. Their seeds are derived from the prompt.

        A response whose reasoning does not end has no reward. Another one takes its place, as such candidates are left
        out too.
        """
        law, samples, seed = self._record.sampling, self._record.samples, int(prompt.key[:15], 16)
        try:
            await self._client.reader.read(prompt.conversation, law.max_tokens)
        except PromptTooLong as error:
            raise PromptTooLong(f"{error}; a calibration draws by the bundle's max_tokens", error.param) from error

        async def draw_reward(index: int) -> list[float]:
            for attempt in range(ATTEMPTS):
                sampling = Sampling.from_law(law, policy=None, seed=seed + index + attempt * samples)
                async with self._gate:
                    turn = await self._client.draw(prompt, sampling)
                    if turn.scored is not None:
                        return (await self._client.score_candidate(prompt.conversation, turn.scored)).rewards
            raise NoAnswer(f"calibration: reasoning takes more than the bundle's max_tokens, {law.max_tokens}")

        first = await draw_reward(0)  # alone: the reference may have to be launched, or fail
        rest = await gather_all([draw_reward(index) for index in range(1, samples)])
        return np.array([first, *rest], dtype=np.float32).T

    def _make_references(self, prompt: Prompt, rewards: Rewards, source: Source) -> ReferenceRewards:
        tables = tuple(
            CalibrationTable((prompt.key,), model_rewards[None].astype(np.float64), table.estimator, table.resolution)
            for table, model_rewards in zip(self._combination.tables, rewards, strict=True)
        )
        return ReferenceRewards(prompt.key, replace(self._combination, tables=tables), source)
