"""Renders and tokenizes conversations, for the policies and for the reward models.

Clients decide how long that takes. Short texts are read on the event loop, because a thread would cost more than the
work. Long texts are read one after another in a thread, so that other requests go on.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from infalign.errors import TemplateRefusal
from infalign.rewards.rubric import reads_rubric
from infalign.templates import Message, Rendering, prompt_key, render_conversation, render_prompt, render_text, tokenise
from infalign.tokens import fewest_tokens
from server.errors import BadRequest, PromptTooLong

SHORT_CHARACTERS = 2048
"""Texts up to this length are read on the event loop, in less than a millisecond. A request may have 64 of them."""
T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """What is to be answered: chat messages or a raw prompt. ``messages`` is empty for a raw prompt."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""

    @property
    def field(self) -> str:
        """The request field that it comes from."""
        return "messages" if self.messages else "prompt"

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages; a raw prompt as what a user says."""
        return self.messages or ({"role": "user", "content": self.prompt},)

    @cached_property
    def characters(self) -> int:
        """Length of all texts. Each message counts as one more, even if it is empty."""
        return len(self.prompt) + sum(1 + len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Prompt:
    """A conversation, rendered and tokenized for the policy."""

    conversation: Conversation
    rendering: Rendering
    tokens: list[int]

    @cached_property
    def key(self) -> str:
        """The hash that identifies the prompt in calibrations."""
        return prompt_key(self.rendering)


@dataclass(frozen=True)
class RewardInput:
    """A conversation with its response, tokenized for the reward models."""

    tokens: list[list[int]]
    """Token ids for each reward model."""
    unread: int = 0
    """The most tokens, over the models, that were left out at the response's end to fit the context."""


class Reader:
    """Renders and tokenizes conversations.

    Args:
        policy: The policies' tokenizer.
        rewards: The reward models' tokenizers by name, in the order of their calibrations.
        context: Returns the largest length of prompt and response together, in tokens.
    """

    def __init__(self, policy: Any, rewards: Mapping[str, Any], context: Callable[[], int]) -> None:
        self.policy, self.rewards, self._context = policy, rewards, context
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
        return await self._run(conversation.characters, lambda: prompt_key(self._render(conversation)))

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
            longest = max(map(len, (tokens, *self._reward_tokens(conversation, ""))))
            self._check_length(conversation, longest, max_tokens)
            return Prompt(conversation, rendering, tokens)

        return await self._run(conversation.characters, read)

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
            tokens = self._reward_tokens(conversation, response)
            excess = max(map(len, tokens), default=0) - self._context()
            if excess <= 0:
                return RewardInput(tokens)
            ends = self._reward_tokens(conversation, "")
            return RewardInput([_fit(*pair, self._context()) for pair in zip(tokens, ends, strict=True)], excess)

        return await self._run(conversation.characters + len(response), read_response)

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
        context, field = self._context(), conversation.field
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
        try:
            return render_prompt(self.policy, conversation.messages)
        except TemplateRefusal as refusal:
            raise _template_error("policy", refusal) from refusal

    def _reward_tokens(self, conversation: Conversation, response: str) -> list[list[int]]:
        """Tokens for each reward model. A raw prompt is continued without a template, and ended like a turn."""
        tokens = []
        for name, tokenizer in self.rewards.items():
            if conversation.messages or reads_rubric(tokenizer):
                try:
                    rendering = render_conversation(tokenizer, conversation.turns, response)
                except TemplateRefusal as refusal:
                    raise _template_error(f"reward model {name}", refusal) from refusal
            else:
                rendering = render_text(tokenizer, conversation.prompt + response, tokenizer.eos_token or "")
            tokens.append(tokenise(tokenizer, rendering))
        return tokens


def _template_error(whose: str, refusal: TemplateRefusal) -> BadRequest:
    return BadRequest(f"messages: the chat template of the {whose} does not accept them: {refusal}", "messages")


def _fit(tokens: list[int], empty: list[int], context: int) -> list[int]:
    """Cut ``tokens`` to ``context``, but keep the tokens that end the turn. ``empty`` has the same end."""
    if len(tokens) <= context:
        return tokens
    end = 0
    while end < min(len(tokens), len(empty)) and tokens[-1 - end] == empty[-1 - end]:
        end += 1
    return tokens[: context - end] + tokens[len(tokens) - end :]
