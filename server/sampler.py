"""Drawing candidates: a conversation becomes tokens, an engine answers it, the reward models read the answer."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from infalign.templates import Message, prompt_key, render_judged, render_prompt, tokenise
from server.account import engine_call, first_time
from server.engines import Completion, Delta, Engines, EnginesDown, Refused, RequestFailed, Sampling
from server.errors import BadRequest, EngineError, PromptTooLong, Unavailable
from server.metrics import Metrics

log = logging.getLogger("infalign.server")
T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """What is answered: chat messages, or a raw prompt (then ``messages`` is empty)."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""

    @property
    def field(self) -> str:
        """The request field it came from."""
        return "messages" if self.messages else "prompt"


@dataclass(frozen=True)
class Prompt:
    """A conversation as the policy reads it."""

    conversation: Conversation
    rendered: str
    tokens: list[int]

    @cached_property
    def key(self) -> str:
        """Its key in calibrations."""
        return prompt_key(self.rendered)


class Sampler:
    """Draws and scores single candidates over engines that it knows only by their protocol.

    Args:
        engines: policies and reward models.
        tokenizers: of the policies, and of the reward models by name, in the order of their calibrations.
    """

    def __init__(self, engines: Engines, tokenizers: tuple[Any, Mapping[str, Any]], metrics: Metrics) -> None:
        self.engines, self.metrics = engines, metrics
        self._policy_tokenizer, self._reward_tokenizers = tokenizers

    @property
    def reward_models(self) -> tuple[str, ...]:
        """Names of the reward models, in the order of their rewards."""
        return tuple(self._reward_tokenizers)

    def render(self, conversation: Conversation) -> str:
        """The text after which the policy writes its answer."""
        if not conversation.messages:
            return conversation.prompt
        return render_prompt(self._policy_tokenizer, conversation.messages)

    def read(self, conversation: Conversation, max_tokens: int) -> Prompt:
        """The prompt, for responses of up to ``max_tokens``.

        Raises:
            PromptTooLong: the two do not fit the context of the policies or of a reward model.
        """
        rendered = self.render(conversation)
        prompt = Prompt(conversation, rendered, tokenise(self._policy_tokenizer, rendered))
        longest = max(map(len, (prompt.tokens, *self._judged_tokens(conversation, ""))))
        if longest + max_tokens > self.engines.context:
            raise PromptTooLong(
                f"{conversation.field}: {longest} tokens and {max_tokens} for the response (max_tokens) make "
                f"{longest + max_tokens}, accepted: at most {self.engines.context} together",
                conversation.field,
            )
        return prompt

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
        """Raw reward of ``response`` by each reward model.

        Raises:
            PromptTooLong: the response does not fit a reward model's context.
            EngineError: a reward model lives, but failed at this response.
            Unavailable: the engines are not up, or died.
        """
        tokens = self._judged_tokens(conversation, response)
        longest = max(map(len, tokens))
        if longest > self.engines.context:
            raise PromptTooLong(
                f"{conversation.field}: with its response it takes {longest} tokens, "
                f"the reward model reads at most {self.engines.context}",
                conversation.field,
            )
        with self.metrics.scoring_seconds.time(), engine_call():
            return await _engine(self.engines.score(tokens))

    def _judged_tokens(self, conversation: Conversation, response: str) -> list[list[int]]:
        """What each reward model reads. A raw prompt is continued as it stands, and ended as a turn is."""
        read = []
        for tokenizer in self._reward_tokenizers.values():
            if conversation.messages:
                rendered = render_judged(tokenizer, conversation.messages, response)
            else:
                rendered = conversation.prompt + response + tokenizer.eos_token
            read.append(tokenise(tokenizer, rendered))
        return read


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
