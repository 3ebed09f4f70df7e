"""Renders and tokenizes conversations, for the policies and for the reward models.

Clients decide how long that takes. Short texts are read on the event loop, because a thread would cost more than the
work. Long texts are read one after another in a thread, so that other requests go on.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from infalign.errors import TemplateRefusal
from infalign.rewards.rubric import reads_rubric
from infalign.templates import Message, Rendering, prompt_key, render_conversation, render_prompt, render_text, tokenise
from infalign.tokens import cut_answer, fewest_tokens
from server.engines import RequestFailed
from server.engines.turns import TurnParser, TurnParsers
from server.errors import BadRequest, PromptTooLong
from server.protocol.messages import REASONING_KEYS

SHORT_CHARACTERS = 2048
"""Texts up to this length are read on the event loop, in less than a millisecond. A request may have 64 of them."""
T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """What is to be answered: chat messages or a raw prompt. ``messages`` is empty for a raw prompt."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools that the answer may call."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the policy's chat template."""
    is_continued: bool = False
    """Whether the answer continues the last message."""
    parallel_calls: bool = True
    """Whether an answer may have more than one call."""

    @property
    def request_field(self) -> str:
        """The request field that it comes from."""
        return "messages" if self.messages else "prompt"

    @property
    def prefill(self) -> str:
        """The start of the answer, if the conversation has it."""
        return str(self.messages[-1]["content"]) if self.is_continued else ""

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages before the answer."""
        return self.messages[:-1] if self.is_continued else self.messages

    @cached_property
    def characters(self) -> int:
        """Length of all contents. Each message counts as one more, even if it is empty."""
        return len(self.prompt) + sum(1 + len(message["content"]) for message in self.messages)

    @cached_property
    def size(self) -> int:
        """Length of everything that a chat template may read, roughly."""
        calls = [message["tool_calls"] for message in self.messages if "tool_calls" in message]
        rest = (calls, self.tools, self.variables)
        return self.characters + (len(str(rest)) if any(rest) else 0)


@dataclass(frozen=True)
class Prompt:
    """A conversation, rendered and tokenized for the policy."""

    conversation: Conversation
    rendering: Rendering
    tokens: list[int]
    key: str
    """The hash that identifies the prompt in calibrations."""
    parser: TurnParser
    """Separates the turns that answer the prompt."""


@dataclass(frozen=True)
class RewardInput:
    """A conversation with its response, as rewards read it."""

    tokens: list[list[int]]
    """Token ids for each reward model."""
    turns: list[Message]
    """The conversation as text, for rewards that no engine computes."""
    response: str
    """The response as text."""
    unread: int = 0
    """The most tokens, over the models, that were left out at the response's end to fit the context."""


class Reader:
    """Renders and tokenizes conversations.

    Args:
        policy: The policies' tokenizer.
        rewards: The reward models' tokenizers by name, in the order of their calibrations.
        context: Returns the largest length of prompt and response together, in tokens.
        parsers: Separate the parts of turns.
    """

    def __init__(
        self, policy: Any, rewards: Mapping[str, Any], context: Callable[[], int], parsers: TurnParsers
    ) -> None:
        self.policy, self.rewards, self._context, self._parsers = policy, rewards, context, parsers
        self._thread = ThreadPoolExecutor(1, "reader")
        for tokenizer in (policy, *rewards.values()):
            fewest_tokens(tokenizer, 0)  # the first call looks through the vocabulary, which takes long

    async def key(self, conversation: Conversation) -> str:
        """Return the hash that identifies a conversation in calibrations.

        Raises:
            PromptTooLong: The text is so long that it cannot fit the context.
            BadRequest: The chat template does not accept the messages.
        """
        self._check_characters(conversation, 0)
        return await self._run(conversation.size, lambda: self._key(conversation, self._render(conversation)))

    async def read(self, conversation: Conversation, max_tokens: int) -> Prompt:
        """Render and tokenize a prompt.

        Args:
            conversation: The conversation.
            max_tokens: The largest length of a response, in tokens.

        Raises:
            PromptTooLong: Prompt and response do not fit the context of the policy or a reward model.
            BadRequest: A chat template does not accept the messages.
        """
        self._check_characters(conversation, max_tokens)

        def read() -> Prompt:
            rendering = self._render(conversation)
            tokens = tokenise(self.policy, rendering)
            turns, start = _reward_turns(conversation), self._answer_start(conversation)
            longest = max(map(len, (tokens, *self._reward_tokens(conversation, turns, start))))
            self._check_length(conversation, longest, max_tokens)
            return Prompt(
                conversation, rendering, tokens, self._key(conversation, rendering), self._parser(conversation, tokens)
            )

        return await self._run(conversation.size, read)

    async def read_response(self, conversation: Conversation, response: str) -> RewardInput:
        """Tokenize a conversation with its response for the reward models.

        A drawn response fits the policy's context, but it may be longer for a reward model. The reward model may have
        another tokenizer, or the policy may have spelled a word in an unusual way. Then the response's end is left out,
        but the tokens that end the turn are kept.

        Args:
            conversation: What the response answers.
            response: The response.

        Raises:
            BadRequest: A reward model's chat template does not accept the conversation.
        """

        def read_response() -> RewardInput:
            turns, start = _reward_turns(conversation), self._answer_start(conversation)
            tokens = self._reward_tokens(conversation, turns, start + response)
            excess = max(map(len, tokens), default=0) - self._context()
            if excess <= 0:
                return RewardInput(tokens, turns, start + response)
            ends = self._reward_tokens(conversation, turns, start)
            tokens = [cut_answer(*pair, self._context()) for pair in zip(tokens, ends, strict=True)]
            return RewardInput(tokens, turns, start + response, excess)

        return await self._run(conversation.size + len(response), read_response)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, characters: int, work: Callable[[], T]) -> T:
        if characters <= SHORT_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _check_characters(self, conversation: Conversation, max_tokens: int) -> None:
        least = max(fewest_tokens(each, conversation.characters) for each in (self.policy, *self.rewards.values()))
        self._check_length(conversation, least, max_tokens, "at least ")

    def _check_length(self, conversation: Conversation, tokens: int, max_tokens: int, bound: str = "") -> None:
        context, field = self._context(), conversation.request_field
        if tokens + max_tokens <= context:
            return
        text = f"{field}: {bound}{tokens} tokens, accepted: at most {context}"
        if max_tokens:
            text = (
                f"{field}: {bound}{tokens} tokens and {max_tokens} for the response (max_tokens) make "
                f"{tokens + max_tokens}, accepted: at most {context} together"
            )
        raise PromptTooLong(text, field)

    def _render(self, conversation: Conversation) -> Rendering:
        if not conversation.messages:
            return render_text(self.policy, conversation.prompt)
        variables = {**conversation.variables, **_tool_variables(conversation)}
        try:
            return render_prompt(self.policy, conversation.messages, variables, conversation.is_continued)
        except TemplateRefusal as refusal:
            raise self._refuse(conversation, refusal) from refusal

    def _refuse(self, conversation: Conversation, refusal: TemplateRefusal) -> BadRequest:
        """Create the error for a conversation that the policy's template refuses. It names the field at fault."""
        for name, rest in (
            ("chat_template_kwargs", replace(conversation, variables={})),
            ("tools", replace(conversation, tools=())),
        ):
            if rest != conversation:
                try:
                    self._render(rest)
                except BadRequest:
                    continue
                return _template_error(name, "policy", refusal)
        return _template_error("messages", "policy", refusal)

    def _key(self, conversation: Conversation, rendering: Rendering) -> str:
        key = prompt_key(rendering)
        return self._parsers.adapt_key(key, bool(conversation.tools)) if conversation.messages else key

    def _parser(self, conversation: Conversation, prompt: list[int]) -> TurnParser:
        """Return the parser of the turns that answer a conversation. Continuations of a raw prompt are one text."""
        if not conversation.messages:
            return TurnParser()
        return self._parsers.for_prompt(
            prompt,
            prefill=conversation.prefill,
            tools=conversation.tools,
            variables=conversation.variables,
            parallel_calls=conversation.parallel_calls,
        )

    def _answer_start(self, conversation: Conversation) -> str:
        """Return the part of the prefill that the reward models read: all but its reasoning."""
        try:
            return self._parser(conversation, []).strip_prefill()
        except RequestFailed as error:
            raise BadRequest("messages: the reasoning of the message to continue cannot be read", "messages") from error

    def _reward_tokens(self, conversation: Conversation, turns: list[Message], answer: str) -> list[list[int]]:
        """Tokens for each reward model. A raw prompt is continued without a template, and ended like a turn."""
        tokens = []
        for name, tokenizer in self.rewards.items():
            if conversation.messages or reads_rubric(tokenizer):
                try:
                    rendering = render_conversation(tokenizer, turns, answer, _tool_variables(conversation))
                except TemplateRefusal as refusal:
                    raise _template_error("messages", f"reward model {name}", refusal) from refusal
            else:
                rendering = render_text(tokenizer, conversation.prompt + answer, tokenizer.eos_token or "")
            tokens.append(tokenise(tokenizer, rendering))
        return tokens


def _template_error(field: str, whose: str, refusal: TemplateRefusal) -> BadRequest:
    return BadRequest(f"{field}: the chat template of the {whose} does not accept them: {refusal}", field)


def _tool_variables(conversation: Conversation) -> dict[str, Any]:
    return {"tools": list(conversation.tools)} if conversation.tools else {}


def _reward_turns(conversation: Conversation) -> list[Message]:
    """The turns that rewards read: without reasoning, and a raw prompt as what a user says."""
    if not conversation.messages:
        return [{"role": "user", "content": conversation.prompt}]
    return [_without_reasoning(message) for message in conversation.turns]


def _without_reasoning(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in REASONING_KEYS}
