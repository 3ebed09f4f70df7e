"""What reward models must do before they are used: give the rewards that the bundle was calibrated with."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infalign.bundle import Bundle
from infalign.errors import RewardMismatch
from infalign.reproduction import Reproduction
from infalign.templates import render_judged, tokenise
from server.concurrency import to_the_end, together
from server.engines.base import Completion, Delta, Engines, EnginesDown, Sampling, Structure

log = logging.getLogger("infalign.server")


@dataclass(frozen=True)
class RewardTrial:
    """The bundle's examples as one reward model reads them, and what it must say of them."""

    reproduction: Reproduction
    tokens: tuple[list[int], ...]
    resolution: float
    """Grid of the calibration."""

    def judge(self, rewards: Sequence[float], places: Sequence[int], where: str) -> None:
        """Log how far the rewards of the examples in ``places`` are from the expected ones.

        Raises:
            RewardMismatch: too far.
        """
        difference, trial = self.reproduction.compare(rewards, places), self.reproduction
        said = f"the reward model {trial.model} gives the bundle's rewards {where}: largest difference {difference:.2g}"
        if difference <= self.resolution:
            log.info("%s", said)
        else:
            log.warning("%s, accepted %.2g; rewards that tied may no longer tie", said, trial.tolerance)


def reward_trials(bundle: Bundle, tokenizers: Mapping[str, Any]) -> dict[str, RewardTrial]:
    """The trial of each reward model of the bundle, which reads with its own of ``tokenizers``."""
    trials = {}
    for name, reproduction in bundle.reproductions.items():
        tokens = tuple(
            tokenise(tokenizers[name], render_judged(tokenizers[name], example.prompt, example.response))
            for example in bundle.examples
        )
        trials[name] = RewardTrial(reproduction, tokens, bundle.calibration.resolution)
    return trials


def fitting(trials: Sequence[RewardTrial], context: int) -> list[int]:
    """Places of the examples that models which read ``context`` tokens can be tried on.

    Raises:
        RewardMismatch: there is none.
    """
    lengths = [max(map(len, tokens)) for tokens in zip(*(trial.tokens for trial in trials), strict=True)]
    places = [place for place, length in enumerate(lengths) if length <= context]
    if not places:
        raise RewardMismatch(f"the engines read {context} tokens, fewer than any of the bundle's scored responses has")
    return places


class EnginesOnTrial:
    """Engines that answer nobody before their reward models have passed the trials, at each start.

    Args:
        engines: what is started, tried and then asked.
        trials: those of the reward models, in the order of their rewards.
    """

    def __init__(self, engines: Engines, trials: Sequence[RewardTrial]) -> None:
        self._engines, self._trials, self._open = engines, tuple(trials), False

    @property
    def context(self) -> int:
        return self._engines.context

    async def start(self) -> None:
        """Start the engines and try them.

        Raises:
            RewardMismatch: a reward model does not give the bundle's rewards; the engines are stopped then.
        """
        await self._engines.start()
        try:
            await self._try()
        except BaseException:
            await to_the_end(asyncio.to_thread(self._engines.stop))
            raise
        self._open = True

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        return await self._ready().generate(prompt, sampling, listen)

    async def check_structure(self, structure: Structure) -> None:
        await self._ready().check_structure(structure)

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        return await self._ready().score(tokens)

    async def load(self, policy: str, adapter: Path) -> None:
        await self._ready().load(policy, adapter)

    async def unload(self, policy: str) -> None:
        await self._engines.unload(policy)

    async def check(self) -> None:
        await self._ready().check()

    def stop(self) -> None:
        self._open = False
        self._engines.stop()

    async def _try(self) -> None:
        places = fitting(self._trials, self.context)
        rewards = await together(
            [self._engines.score([trial.tokens[place] for trial in self._trials]) for place in places]
        )
        for trial, of_model in zip(self._trials, zip(*rewards, strict=True), strict=True):
            trial.judge(of_model, places, "here")

    def _ready(self) -> Engines:
        if not self._open:
            raise EnginesDown("the engines are not up")
        return self._engines
