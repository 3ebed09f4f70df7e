"""Draws and scores single candidates, and translates errors of engines to errors for clients."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from server.concurrency import gather_all
from server.decoding.external_rewards import ExternalReward
from server.decoding.reader import Conversation, Prompt, Reader, RewardInput
from server.decoding.reference_judges import ReferenceJudgment
from server.decoding.tried_reward import TriedReward
from server.engines import Delta, Engines, EnginesDown, Refused, RequestFailed, Sampling, Structure
from server.engines.turns import Turn, TurnParsers
from server.errors import BadRequest, EngineError, PromptTooLong, Unavailable
from server.observability.account import engine_call, is_new_line
from server.observability.metrics import Metrics

log = logging.getLogger("infalign.server")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scores:
    """The rewards of one candidate."""

    rewards: list[float]
    """The raw reward of each model."""
    unread: int
    """Tokens at the end of the candidate that did not fit the reward models' context."""


class EngineClient:
    """Draws and scores single candidates. It knows engines only by their protocol.

    Args:
        engines: The policies and the reward models.
        tokenizers: The policies' tokenizer, then the reward models' by name.
        metrics: Observes durations.
        parsers: Separate the parts of turns.
        external_rewards: Rewards that no engine computes, by name.
        judgments: Rewards that the reference gives as a judge, by name. The tokenizers have theirs.
    """

    def __init__(
        self,
        engines: Engines,
        tokenizers: tuple[Any, Mapping[str, Any]],
        metrics: Metrics,
        parsers: TurnParsers,
        external_rewards: Mapping[str, ExternalReward] | None = None,
        judgments: Mapping[str, ReferenceJudgment] | None = None,
    ) -> None:
        self.engines, self.metrics = engines, metrics
        self.reader = Reader(*tokenizers, lambda: self.context, parsers)
        self._external_rewards, self._judgments = external_rewards or {}, judgments or {}

    @property
    def context(self) -> int:
        """Largest length of prompt and response together, in tokens. A judge writes one token more."""
        return self.engines.context - bool(self._judgments)

    @property
    def reward_models(self) -> tuple[str, ...]:
        """Names of the rewards, in the order of their calibrations."""
        return tuple(sorted((*self.reader.rewards, *self._external_rewards)))

    def close(self) -> None:
        """Stop the reader, and end the rewards that no engine computes."""
        self.reader.close()
        for reward in self._external_rewards.values():
            reward.close()

    async def check_structure(self, structure: Structure) -> None:
        """Check that responses can be forced to have a structure, before any is drawn.

        Raises:
            BadRequest: They cannot.
            Unavailable: The check is not possible now.
        """
        try:
            with engine_call():
                await self.engines.check_structure(structure)
        except Refused as error:
            raise BadRequest(f"response_format: accepted: {error}", "response_format") from error
        except EnginesDown as error:
            raise Unavailable("the engines cannot answer now") from error

    async def draw(
        self,
        prompt: Prompt,
        sampling: Sampling,
        listen: Callable[[Delta], None] | None = None,
        watch: Callable[[Delta], None] | None = None,
    ) -> Turn:
        """Draw one response, and separate its parts.

        Args:
            prompt: The prompt.
            sampling: How the response is drawn.
            listen: Called with the new text of each part as the response grows.
            watch: Called with what the engine tells as the response grows, if nobody listens.

        Raises:
            BadRequest: The engine does not accept the sampling.
            EngineError: The engine is alive but failed at this response, or its parts cannot be separated.
            Unavailable: The engines are not up, or have died.
        """
        with self.metrics.generation_seconds.time(), engine_call():
            return await translate_errors(self._draw(prompt, sampling, listen, watch), sampling)

    async def _draw(
        self,
        prompt: Prompt,
        sampling: Sampling,
        listen: Callable[[Delta], None] | None,
        watch: Callable[[Delta], None] | None,
    ) -> Turn:
        parser = prompt.parser
        listener = parser.stream(listen) if listen else None
        completion = await self.engines.generate(prompt.tokens, parser.adapt(sampling), listener or watch)
        if listener:
            listener(None)
        return parser.read(completion)

    async def score(self, conversation: Conversation, response: str) -> list[float]:
        """Score a response that the client provides.

        Args:
            conversation: What the response answers.
            response: The response.

        Returns:
            The raw reward of each reward model.

        Raises:
            PromptTooLong: The response does not fit a reward model's context.
            BadRequest: A reward model's chat template does not accept the conversation.
            EngineError: A reward model is alive but failed at this response.
            Unavailable: The engines are not up, or have died.
        """
        reward_input = await self.reader.read_response(conversation, response)
        if reward_input.unread:
            context = self.context
            raise PromptTooLong(
                f"responses: with its prompt a response takes {context + reward_input.unread} tokens, "
                f"accepted: at most {context}, which the reward models can read",
                "responses",
            )
        return await self._score(reward_input)

    async def score_candidate(self, conversation: Conversation, text: str) -> Scores:
        """Score a response that was drawn. If it does not fit the reward models' context, its end is left out.

        Args:
            conversation: What the response answers.
            text: The response.

        Raises:
            BadRequest: A reward model's chat template does not accept the conversation.
            EngineError: A reward model is alive but failed at this response.
            Unavailable: The engines are not up, or have died.
        """
        reward_input = await self.reader.read_response(conversation, text)
        return Scores(await self._score(reward_input), reward_input.unread)

    async def _score(self, reward_input: RewardInput) -> list[float]:
        tokens = dict(zip(self.reader.rewards, reward_input.tokens, strict=True))
        judged = {name: tokens.pop(name) for name in self._judgments}
        pair = reward_input.turns, reward_input.response

        async def score_by_models() -> list[float]:
            return await self.engines.score(list(tokens.values())) if tokens else []

        async def score_by(reward: TriedReward[T], text: T) -> list[float]:
            return [await reward.score(text)]

        work = [score_by_models()]
        work += [score_by(self._judgments[name], text) for name, text in judged.items()]
        work += [score_by(reward, pair) for reward in self._external_rewards.values()]
        with self.metrics.scoring_seconds.time(), engine_call():
            rewards = await translate_errors(gather_all(work))
        names = (*tokens, *judged, *self._external_rewards)
        by_name = dict(zip(names, chain.from_iterable(rewards), strict=True))
        return [by_name[name] for name in self.reward_models]


async def translate_errors(work: Awaitable[T], sampling: Sampling | None = None) -> T:
    """Wait for the work of an engine, and translate its errors to those that clients get.

    Args:
        work: The work.
        sampling: How a response is drawn, if the work draws one.

    Raises:
        BadRequest: The engine does not accept the request.
        EngineError: The engine is alive but failed at this request.
        Unavailable: The engine is not up, or has died.
    """
    try:
        return await work
    except EnginesDown as error:
        _warn(f"an engine did not answer: {error}")
        raise Unavailable("the engines cannot answer now") from error
    except RequestFailed as error:
        _warn(f"an engine failed at a candidate: {error}")
        if error.internal and sampling is not None and sampling.structure is not None:
            # vLLM compiles the structure in the engine, and gives no reason if that fails.
            raise BadRequest(
                "response_format: the engine cannot hold a response to this schema; a simpler one may do, for instance "
                "without patterns that repeat more than a hundred times",
                "response_format",
            ) from error
        raise EngineError("an engine failed at this request; it may succeed when it is repeated") from error
    except Refused as error:
        raise BadRequest(str(error), error.field) from error


def _warn(line: str) -> None:
    """Log a warning once per request. It is for the operator alone, because it may contain addresses."""
    if is_new_line(line):
        log.warning("%s", line)
