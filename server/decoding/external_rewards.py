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
from infalign.errors import RewardMismatch
from infalign.rewards import OpenReward, RewardFailed
from infalign.templates import Message
from server.concurrency import gather_all
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


class ExternalReward:
    """One reward that no engine computes.

    Before it is used, and again after each failure to answer, it must reproduce the rewards of the bundle's examples.

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
        examples: Sequence[tuple[Sequence[Message], str]],
        metrics: Metrics,
    ) -> None:
        self.name, self._reward, self._trial, self._examples = name, reward, trial, tuple(examples)
        self._failures, self._tokens = metrics.reward_failures.labels(name), metrics.judge_tokens.labels(name)
        self._is_tried, self._trial_lock = False, asyncio.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, f"reward-{name}")

    async def score(self, prompt: Sequence[Message], response: str) -> float:
        """Score one response.

        Args:
            prompt: The conversation.
            response: The response.

        Returns:
            The raw reward.

        Raises:
            RequestFailed: The reward failed at this response, or does not give the bundle's rewards.
        """
        if not self._is_tried:
            async with self._trial_lock:  # all that wait share one trial
                if not self._is_tried:
                    await self._try()
        return await self._score(prompt, response)

    def close(self) -> None:
        """End the reward's process or connections. Nothing may wait for it any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._reward.close()

    async def _try(self) -> None:
        if not self._examples:
            return
        rewards = await gather_all([self._score(*example) for example in self._examples])
        try:
            self._trial.check(rewards, range(len(rewards)), "here")
        except RewardMismatch as error:
            raise RequestFailed(str(error), internal=True) from error
        self._is_tried = True

    async def _score(self, prompt: Sequence[Message], response: str) -> float:
        entry = _Waiting(prompt, response, asyncio.get_running_loop().create_future())
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
        loop, tokens = asyncio.get_running_loop(), self._reward.tokens
        try:
            rewards = await loop.run_in_executor(self._thread, self._reward.score, prompts, responses)
        except RewardFailed as error:
            if error.is_of_content and len(batch) > 1:
                # Perhaps one response is at fault. The candidates of other requests must not fail with it.
                for entry in batch:
                    await self._score_batch([entry])
                return
            self._is_tried = self._is_tried and error.is_of_content
            failure: Exception = RequestFailed(str(error))
        except Exception as error:  # whatever it is, nobody may wait for ever
            log.exception("the reward %s failed", self.name)
            failure = RequestFailed(f"the reward {self.name} failed ({type(error).__name__})", internal=True)
        else:
            for entry, reward in zip(batch, rewards, strict=True):
                if not entry.result.done():
                    entry.result.set_result(reward)
            return
        finally:
            self._tokens.inc(self._reward.tokens - tokens)
        self._failures.inc(len(batch))
        for entry in batch:
            if not entry.result.done():
                entry.result.set_exception(failure)


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
