"""Rewards that no engine computes: functions, services and judges behind other servers.

Their calls block, so each reward has a thread. What candidates wait for while a call runs goes into the next call.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infalign.bundle import Bundle
from infalign.rewards import OpenReward, RewardFailed
from infalign.templates import Message
from server.decoding.tried_reward import TriedReward
from server.engines.base import RequestFailed
from server.engines.trial import RewardTrial
from server.observability.metrics import Metrics

log = logging.getLogger("infalign.server")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A response that waits for its reward."""

    prompt: Sequence[Message]
    response: str
    result: "asyncio.Future[float]"


Pair = tuple[Sequence[Message], str]
"""A conversation, and a response to it."""


class ExternalReward(TriedReward[Pair]):
    """One reward that no engine computes. It is tried again after each failure to answer.

    Args:
        name: Name of the reward.
        reward: The reward, ready to score.
        trial: The examples with their rewards.
        examples: Conversation and response of each example.
        metrics: Counts failures and the tokens of judges.
    """

    def __init__(
        self,
        name: str,
        reward: OpenReward,
        trial: RewardTrial,
        examples: Sequence[Pair],
        metrics: Metrics,
    ) -> None:
        super().__init__(name, trial)
        self._reward, self._examples = reward, tuple(examples)
        self._failures, self._tokens = metrics.reward_failures.labels(name), metrics.judge_tokens.labels(name)
        self._cached_tokens = metrics.judge_cached_tokens.labels(name)
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, f"reward-{name}")

    def close(self) -> None:
        """End the reward's process or connections. Nothing may wait for it any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._reward.close()

    def examples(self) -> dict[int, Pair]:
        return dict(enumerate(self._examples))

    async def _score(self, text: Pair) -> float:
        entry = _Waiting(*text, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await entry.result

    async def _work(self) -> None:
        """Score what waits, batch by batch, until nothing does."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._reward.batch, len(self._waiting)))]
            await self._score_batch([entry for entry in batch if not entry.result.done()])

    async def _score_batch(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        prompts, responses = [entry.prompt for entry in batch], [entry.response for entry in batch]
        loop = asyncio.get_running_loop()
        tokens, cached_tokens = self._reward.tokens, self._reward.cached_tokens
        results: Sequence[float | Exception]
        try:
            results = await loop.run_in_executor(self._thread, self._reward.score_each, prompts, responses)
        except Exception as error:  # whatever it is, nobody may wait for ever
            log.exception("the reward %s failed", self.name)
            failure = RequestFailed(f"the reward {self.name} failed ({type(error).__name__})", internal=True)
            results = [failure] * len(batch)
        finally:
            self._tokens.inc(self._reward.tokens - tokens)
            self._cached_tokens.inc(self._reward.cached_tokens - cached_tokens)
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, RewardFailed):
                self.is_tried = self.is_tried and result.is_of_content
                result = RequestFailed(str(result))
            if isinstance(result, Exception):
                self._failures.inc()
            if entry.result.done():
                continue
            if isinstance(result, Exception):
                entry.result.set_exception(result)
            else:
                entry.result.set_result(result)


def external_rewards(bundle: Bundle, rewards: Mapping[str, OpenReward], metrics: Metrics) -> dict[str, ExternalReward]:
    """Create the rewards of a bundle that no engine computes.

    Args:
        bundle: The bundle, with the examples that they must reproduce.
        rewards: The rewards, ready to score, by name.
        metrics: Counts failures and the tokens of judges.
    """
    examples = [(example.prompt, example.response) for example in bundle.examples]
    resolution = bundle.calibration.resolution
    return {
        name: ExternalReward(name, reward, RewardTrial(bundle.reproductions[name], (), resolution), examples, metrics)
        for name, reward in rewards.items()
    }
