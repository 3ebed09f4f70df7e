"""Rewards that no reward model computes. They are tried before they are used."""

import asyncio
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from infalign.errors import RewardMismatch
from server.concurrency import gather_all
from server.engines.base import RequestFailed
from server.engines.trial import RewardTrial

Text = TypeVar("Text")


class TriedReward(ABC, Generic[Text]):
    """One reward that must reproduce the rewards of the bundle's examples before it is used.

    A subclass that notices an outage sets ``is_tried`` to False. The next call is then preceded by another trial.

    Args:
        name: Name of the reward.
        trial: The examples with their rewards.
    """

    def __init__(self, name: str, trial: RewardTrial) -> None:
        self.name, self.trial, self.is_tried = name, trial, False
        self._lock = asyncio.Lock()

    async def score(self, text: Text) -> float:
        """Score one response.

        Args:
            text: The response with its conversation, as the reward reads them.

        Returns:
            The raw reward.

        Raises:
            EnginesDown: An engine that computes the reward cannot answer.
            RequestFailed: The reward failed at this response, or does not give the bundle's rewards.
        """
        if not self.is_tried:
            async with self._lock:  # all that wait share one trial
                if not self.is_tried:
                    await self._try()
        return await self._score(text)

    @abstractmethod
    def examples(self) -> dict[int, Text]:
        """Return the bundle's examples that can be scored, by their positions in the bundle."""

    @abstractmethod
    async def _score(self, text: Text) -> float:
        """Score one response without a trial."""

    async def _try(self) -> None:
        examples = self.examples()
        if not examples:
            return
        rewards = await gather_all([self._score(example) for example in examples.values()])
        try:
            self.trial.check(rewards, list(examples), "here")
        except RewardMismatch as error:
            raise RequestFailed(str(error), internal=True) from error
        self.is_tried = True
