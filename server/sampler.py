"""Drawing and scoring single candidates: an engine answers a prompt, the reward models read the answer."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from server.account import engine_call
from server.decoding.reader import Conversation, JudgedText, Prompt, Reader
from server.engines import Completion, Delta, Engines, EnginesDown, Refused, Sampling, Structure
from server.errors import BadRequest, PromptTooLong, Unavailable
from server.metrics import Metrics

log = logging.getLogger("infalign.server")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scores:
    """What the reward models say of one candidate."""

    rewards: list[float]
    """Raw, of each model."""
    unread: int
    """Tokens at the candidate's end that did not fit the reward models' context."""


class Sampler:
    """Draws and scores single candidates over engines that it knows only by their protocol.

    Args:
        engines: policies and reward models.
        tokenizers: of the policies, and of the reward models by name, in the order of their calibrations.
    """

    def __init__(self, engines: Engines, tokenizers: tuple[Any, Mapping[str, Any]], metrics: Metrics) -> None:
        self.engines, self.metrics = engines, metrics
        self.reader = Reader(*tokenizers, lambda: engines.context)

    @property
    def reward_models(self) -> tuple[str, ...]:
        """Names of the reward models, in the order of their rewards."""
        return tuple(self.reader.rewards)

    async def check_structure(self, structure: Structure) -> None:
        """See that responses can be held to ``structure``, before any is drawn.

        Raises:
            BadRequest: they cannot.
            Unavailable: it cannot be found out now.
        """
        try:
            with engine_call():
                await self.engines.check_structure(structure)
        except Refused as error:
            raise BadRequest(f"response_format: accepted: {error}", "response_format") from error
        except EnginesDown as error:
            raise Unavailable("the engines cannot answer now") from error

    async def draw(
        self, prompt: Prompt, sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        """One response; ``listen`` is told of its text as it grows.

        Raises:
            BadRequest: the engine does not accept the sampling.
            Unavailable: the engines are not up, or died.
        """
        with self.metrics.generation_seconds.time(), engine_call():
            try:
                return await _engine(self.engines.generate(prompt.tokens, sampling, listen))
            except Refused as error:
                raise _refusal(str(error), sampling) from error

    async def score(self, conversation: Conversation, response: str) -> list[float]:
        """Raw reward of a response that somebody brings, by each reward model.

        Raises:
            PromptTooLong: the response does not fit a reward model's context.
            BadRequest: a reward model's chat template refuses the conversation.
            Unavailable: the engines are not up, or died.
        """
        judged = await self.reader.judge(conversation, response)
        if judged.unread:
            context = self.engines.context
            raise PromptTooLong(
                f"responses: with its prompt a response takes {context + judged.unread} tokens, "
                f"accepted: at most {context}, which the reward models can read",
                "responses",
            )
        return await self._score(judged)

    async def score_candidate(self, conversation: Conversation, text: str) -> Scores:
        """Raw reward of a response that was drawn, by each reward model, of as much as fits their context.

        Raises:
            BadRequest: a reward model's chat template refuses the conversation.
            Unavailable: the engines are not up, or died.
        """
        judged = await self.reader.judge(conversation, text)
        return Scores(await self._score(judged), judged.unread)

    async def _score(self, judged: JudgedText) -> list[float]:
        with self.metrics.scoring_seconds.time(), engine_call():
            return await _engine(self.engines.score(judged.tokens))


async def _engine(work: Awaitable[T]) -> T:
    try:
        return await work
    except EnginesDown as error:
        log.warning("an engine did not answer: %s", error)  # for the operator alone: it may name addresses
        raise Unavailable("the engines cannot answer now") from error


def _refusal(why: str, sampling: Sampling) -> BadRequest:
    """What a client is told whose sampling an engine refuses. vLLM names the bias in its text, and nothing else."""
    field = "logit_bias" if "logit_bias" in why else "response_format" if sampling.structure else None
    return BadRequest(f"{field}: {why}" if field else why, field)
