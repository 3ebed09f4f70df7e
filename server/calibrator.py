"""Where the quantiles of a prompt come from: the bundle, what was drawn on demand, or all prompts pooled."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from infalign.bundle import Bundle
from infalign.calibration import Calibration, CalibrationTable
from infalign.combination import Combination
from infalign.manifest import CalibrationRecord
from server.concurrency import Shared, together
from server.engines import Sampling
from server.errors import PromptTooLong
from server.sampler import Prompt, Sampler
from server.store import Rewards, Store

Source = Literal["bundle", "cache", "drawn", "pooled"]
DEPENDS_ON = {"reference", "reward_model", "chat_template", "sampling", "samples", "resolution"}


def context(record: CalibrationRecord) -> str:
    """Digest of all that a calibration depends on beside its prompt."""
    return hashlib.sha256(record.model_dump_json(include=DEPENDS_ON).encode()).hexdigest()


@dataclass(frozen=True)
class Found:
    """The reference rewards that a prompt is read by, and where they come from."""

    key: str
    combination: Combination
    source: Source

    @cached_property
    def calibration(self) -> Calibration:
        """The prompt's own (scope ``prompt``), or the pooled one."""
        return self.combination.table.lookup(self.key)


class Calibrator:
    """The calibrations of one bundle, and of prompts that it does not know, drawn when asked for.

    Args:
        store: keeps what was drawn; its context is that of the bundle's calibration.
        concurrency: reference draws at a time, of all calibrations together.
    """

    def __init__(self, bundle: Bundle, sampler: Sampler, store: Store, concurrency: int) -> None:
        self._bundled, self._record = bundle.combination, bundle.calibration
        self._sampler, self._store, self._metrics = sampler, store, sampler.metrics
        self._gate = asyncio.Semaphore(concurrency)
        self._work: Shared[Found] = Shared()
        _ = self._bundled.table.pooled  # sorted now, not within the first request

    async def find(self, prompt: Prompt) -> Found:
        """Reference rewards for ``prompt``, or the pooled ones of all prompts where it is not calibrated."""
        found = self._in_bundle(prompt) or await self._in_store(prompt)
        return found or Found(prompt.key, self._bundled, "pooled")

    async def calibrate(self, prompt: Prompt) -> Found:
        """Reference rewards for ``prompt``, drawn now where there are none.

        Whoever asks for the same prompt meanwhile waits for the same draws. They are cancelled when nobody waits.

        Raises:
            PromptTooLong: prompt and response do not fit the context under the calibration's sampling law.
            EngineError: a live engine failed at a reference response; nothing is kept then.
            Unavailable: the engines are not up, or died.
        """
        return self._in_bundle(prompt) or await self._work.get(prompt.key, lambda: self._obtain(prompt))

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()

    def _in_bundle(self, prompt: Prompt) -> Found | None:
        return Found(prompt.key, self._bundled, "bundle") if prompt.key in self._bundled.table else None

    async def _in_store(self, prompt: Prompt) -> Found | None:
        rewards = await self._store.get(prompt.key)
        return None if rewards is None else self._found(prompt, rewards, "cache")

    async def _obtain(self, prompt: Prompt) -> Found:
        if found := await self._in_store(prompt):
            return found
        with self._metrics.calibrating.track_inprogress():
            began = time.perf_counter()
            rewards = await self._draw(prompt)
            self._metrics.calibration_seconds.observe(time.perf_counter() - began)
        found = self._found(prompt, rewards, "drawn")  # refuses rewards that are not finite, before they are kept
        await self._store.put(prompt.key, rewards)
        return found

    async def _draw(self, prompt: Prompt) -> Rewards:
        """Rewards of K responses of the reference; their seeds follow from the prompt."""
        law, seed = self._record.sampling, int(prompt.key[:15], 16)
        try:
            self._sampler.read(prompt.conversation, law.max_tokens)
        except PromptTooLong as error:
            raise PromptTooLong(f"{error}; a calibration draws by the bundle's max_tokens", error.param) from error

        async def scored(index: int) -> list[float]:
            sampling = Sampling(
                temperature=law.temperature,
                top_p=law.top_p,
                top_k=law.top_k,
                max_tokens=law.max_tokens,
                seed=seed + index,
                policy=None,
            )
            async with self._gate:
                completion = await self._sampler.draw(prompt, sampling)
                return await self._sampler.score(prompt.conversation, completion.text)

        first = await scored(0)  # alone: what stops one stops all, and the reference may have to be launched
        rest = await together([scored(index) for index in range(1, self._record.samples)])
        return np.array([first, *rest], dtype=np.float32).T

    def _found(self, prompt: Prompt, rewards: Rewards, source: Source) -> Found:
        tables = tuple(
            CalibrationTable((prompt.key,), of_model[None].astype(np.float64), table.estimator, table.resolution)
            for table, of_model in zip(self._bundled.tables, rewards, strict=True)
        )
        return Found(prompt.key, replace(self._bundled, tables=tables), source)
