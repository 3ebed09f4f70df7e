"""Drawing and scoring single candidates: an engine answers a prompt, the reward models read the answer."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from server.account import engine_call, first_time
from server.decoding.reader import Conversation, JudgedText, Prompt, Reader
from server.engines import Completion, Delta, Engines, EnginesDown, Refused, RequestFailed, Sampling, Structure
from server.errors import BadRequest, EngineError, PromptTooLong, Unavailable
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
            EngineError: the engine lives, but failed at this response.
            Unavailable: the engines are not up, or died.
        """
        with self.metrics.generation_seconds.time(), engine_call():
            return await _engine(self.engines.generate(prompt.tokens, sampling, listen), sampling)

    async def score(self, conversation: Conversation, response: str) -> list[float]:
        """Raw reward of a response that somebody brings, by each reward model.

        Raises:
            PromptTooLong: the response does not fit a reward model's context.
            BadRequest: a reward model's chat template refuses the conversation.
            EngineError: a reward model lives, but failed at this response.
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


async def _engine(work: Awaitable[T], sampling: Sampling | None = None) -> T:
    try:
        return await work
    except EnginesDown as error:
        _warn(f"an engine did not answer: {error}")
        raise Unavailable("the engines cannot answer now") from error
    except RequestFailed as error:
        _warn(f"an engine failed at a candidate: {error}")
        if error.internal and sampling is not None and sampling.structure is not None:
            # vLLM compiles the structure in the engine, and says no more when that fails.
            raise BadRequest(
                "response_format: the engine cannot hold a response to this schema; a simpler one may do, for instance "
                "without patterns that repeat more than a hundred times",
                "response_format",
            ) from error
        raise EngineError("an engine failed at this request; it may succeed when it is repeated") from error
    except Refused as error:
        raise BadRequest(str(error), error.field) from error


def _warn(line: str) -> None:
    """Tell the operator alone, since it may name addresses, and once of all candidates of a request."""
    if first_time(line):
        log.warning("%s", line)
