"""Trials of reward models. Before they are used, they must reproduce the rewards of the bundle's calibration.

Another precision, vLLM version or model file changes rewards. Quantiles would then be wrong without any error.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infalign.bundle import Bundle
from infalign.errors import RewardMismatch
from infalign.reproduction import Reproduction
from infalign.templates import render_conversation, tokenise
from server.concurrency import gather_all, run_to_end
from server.engines.base import Completion, Delta, Engines, EnginesDown, NextToken, Sampling, Structure

log = logging.getLogger("infalign.server")


@dataclass(frozen=True)
class RewardTrial:
    """The trial of one reward model: the bundle's examples as it reads them, and their expected rewards."""

    reproduction: Reproduction
    """The expected rewards, with a tolerance."""
    tokens: tuple[list[int], ...]
    """Token ids of each example."""
    resolution: float
    """Width of the grid to which the calibration rounds rewards."""

    def check(self, rewards: Sequence[float], places: Sequence[int], where: str) -> None:
        """Compare rewards with the expected ones, and log the largest difference.

        Args:
            rewards: Rewards of some examples.
            places: Positions of these examples in the bundle.
            where: Where the model runs, for the log line.

        Raises:
            RewardMismatch: The rewards differ by more than the tolerance.
        """
        difference, trial = self.reproduction.compare(rewards, places), self.reproduction
        text = f"the reward model {trial.model} gives the bundle's rewards {where}: largest difference {difference:.2g}"
        if difference <= self.resolution:
            log.info("%s", text)
        else:
            log.warning("%s, accepted %.2g; rewards that tied may no longer tie", text, trial.tolerance)


def reward_trials(bundle: Bundle, tokenizers: Mapping[str, Any]) -> dict[str, RewardTrial]:
    """Create the trial of each reward model of a bundle.

    Args:
        bundle: The bundle with the examples.
        tokenizers: The tokenizers of the reward models by name.
    """
    trials = {}
    for name in tokenizers:
        tokens = tuple(
            tokenise(tokenizers[name], render_conversation(tokenizers[name], example.prompt, example.response))
            for example in bundle.examples
        )
        trials[name] = RewardTrial(bundle.reproductions[name], tokens, bundle.calibration.resolution)
    return trials


def fitting_examples(trials: Sequence[RewardTrial], context: int) -> list[int]:
    """Choose the examples that fit the models' context.

    Args:
        trials: The trials of one or more reward models.
        context: The context of the models, in tokens.

    Returns:
        Positions of the examples.

    Raises:
        RewardMismatch: No example fits.
    """
    lengths = [max(map(len, tokens)) for tokens in zip(*(trial.tokens for trial in trials), strict=True)]
    places = [place for place, length in enumerate(lengths) if length <= context]
    if not places:
        raise RewardMismatch(f"the engines read {context} tokens, fewer than any of the bundle's scored responses has")
    return places


class EnginesOnTrial:
    """Engines that answer only after their reward models have passed their trials. Implements :class:`Engines`.

    The trials take place at each start.

    Args:
        engines: The engines to start and try.
        trials: The trials of the reward models, in the order of their rewards.
    """

    def __init__(self, engines: Engines, trials: Sequence[RewardTrial]) -> None:
        self._engines, self._trials, self._is_open = engines, tuple(trials), False

    @property
    def context(self) -> int:
        return self._engines.context

    async def start(self) -> None:
        """Start the engines and try their reward models.

        Raises:
            RewardMismatch: A reward model does not reproduce the bundle's rewards. The engines are stopped then.
        """
        await self._engines.start()
        try:
            await self._try()
        except BaseException:
            await run_to_end(asyncio.to_thread(self._engines.stop))
            raise
        self._is_open = True

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        return await self._get_engines().generate(prompt, sampling, listen)

    async def check_structure(self, structure: Structure) -> None:
        await self._get_engines().check_structure(structure)

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        return await self._get_engines().score(tokens)

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int]) -> NextToken:
        return await self._get_engines().next_logprobs(prompt, tokens)

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        return await self._get_engines().score_prefix(tokens)

    async def load(self, policy: str, adapter: Path) -> None:
        await self._get_engines().load(policy, adapter)

    async def unload(self, policy: str) -> None:
        await self._engines.unload(policy)

    async def check(self) -> None:
        await self._get_engines().check()

    async def discard_failed(self) -> list[EnginesDown]:
        return await self._engines.discard_failed()

    def stop(self) -> None:
        self._is_open = False
        self._engines.stop()

    async def _try(self) -> None:
        if not self._trials:
            return
        places = fitting_examples(self._trials, self.context)
        rewards = await gather_all(
            [self._engines.score([trial.tokens[place] for trial in self._trials]) for place in places]
        )
        for trial, model_rewards in zip(self._trials, zip(*rewards, strict=True), strict=True):
            trial.check(model_rewards, places, "here")

    def _get_engines(self) -> Engines:
        if not self._is_open:
            raise EnginesDown("the engines are not up")
        return self._engines
