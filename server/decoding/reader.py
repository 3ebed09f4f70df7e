"""Reading: a conversation becomes text and tokens, for the policies and for the reward models.

How long that takes is up to the client. Short texts are read on the event loop, where a hop to a thread would cost more
than the work. Long ones wait for their turn in a thread, so that other requests go on meanwhile.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from infalign.errors import TemplateRefusal
from infalign.templates import (
    Message,
    Rendering,
    fewest_tokens,
    prompt_key,
    render_judged,
    render_prompt,
    render_text,
    tokenise,
)
from server.errors import BadRequest, PromptTooLong

SHORT = 2048
"""Characters that are read on the event loop, in less than a millisecond; a request may bring 64 such responses."""
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

    @cached_property
    def characters(self) -> int:
        """Length of all its text; a turn without text counts as one."""
        return len(self.prompt) + sum(1 + len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Prompt:
    """A conversation as the policy reads it."""

    conversation: Conversation
    rendering: Rendering
    tokens: list[int]

    @cached_property
    def key(self) -> str:
        """Its key in calibrations."""
        return prompt_key(self.rendering)


@dataclass(frozen=True)
class JudgedText:
    """A conversation with its response as the reward models read it."""

    tokens: list[list[int]]
    """For each reward model."""
    unread: int = 0
    """Tokens at the end of the response that were left out to fit the context, at most over the models."""


class Reader:
    """Turns conversations into tokens.

    Args:
        policy: the policies' tokenizer.
        rewards: tokenizers of the reward models by name, in the order of their calibrations.
        context: says how many tokens prompt and response may have together.
    """

    def __init__(self, policy: Any, rewards: Mapping[str, Any], context: Callable[[], int]) -> None:
        self.policy, self.rewards, self._context = policy, rewards, context
        self._thread = ThreadPoolExecutor(1, "reader")
        for tokenizer in (policy, *rewards.values()):
            fewest_tokens(tokenizer, 0)  # looks through the vocabulary the first time

    async def key(self, conversation: Conversation) -> str:
        """The key of a conversation in calibrations.

        Raises:
            PromptTooLong: its length alone says that it does not fit the context.
            BadRequest: the chat template refuses the messages.
        """
        self._check_characters(conversation, 0)
        return await self._run(conversation.characters, lambda: prompt_key(self._render(conversation)))

    async def read(self, conversation: Conversation, max_tokens: int) -> Prompt:
        """The prompt, for responses of up to ``max_tokens``.

        Raises:
            PromptTooLong: the two do not fit the context of the policies or of a reward model.
            BadRequest: a chat template refuses the messages.
        """
        self._check_characters(conversation, max_tokens)

        def read() -> Prompt:
            rendering = self._render(conversation)
            tokens = tokenise(self.policy, rendering)
            longest = max(map(len, (tokens, *self._judged_tokens(conversation, ""))))
            self._check_length(conversation, longest, max_tokens)
            return Prompt(conversation, rendering, tokens)

        return await self._run(conversation.characters, read)

    async def judge(self, conversation: Conversation, response: str) -> JudgedText:
        """What the reward models read of a response.

        A response that was drawn within the context can be longer for a reward model, which reads its text: another
        tokenizer, or the same one where the policy spelled a word in an unusual way. What does not fit is left out at
        the response's end; the tokens that end the turn stay.

        Raises:
            BadRequest: a reward model's chat template refuses the conversation.
        """

        def judge() -> JudgedText:
            tokens = self._judged_tokens(conversation, response)
            excess = max(map(len, tokens)) - self._context()
            if excess <= 0:
                return JudgedText(tokens)
            ends = self._judged_tokens(conversation, "")
            return JudgedText([_fit(*pair, self._context()) for pair in zip(tokens, ends, strict=True)], excess)

        return await self._run(conversation.characters + len(response), judge)

    def close(self) -> None:
        """Read no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, characters: int, work: Callable[[], T]) -> T:
        if characters <= SHORT:
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
            raise _refused("policy", refusal) from refusal

    def _judged_tokens(self, conversation: Conversation, response: str) -> list[list[int]]:
        """What each reward model reads. A raw prompt is continued as it stands, and ended as a turn is."""
        tokens = []
        for name, tokenizer in self.rewards.items():
            if conversation.messages:
                try:
                    rendering = render_judged(tokenizer, conversation.messages, response)
                except TemplateRefusal as refusal:
                    raise _refused(f"reward model {name}", refusal) from refusal
            else:
                rendering = render_text(tokenizer, conversation.prompt + response, tokenizer.eos_token)
            tokens.append(tokenise(tokenizer, rendering))
        return tokens


def _refused(whose: str, refusal: TemplateRefusal) -> BadRequest:
    return BadRequest(f"messages: the chat template of the {whose} does not accept them: {refusal}", "messages")


def _fit(tokens: list[int], empty: list[int], context: int) -> list[int]:
    """``tokens`` cut to ``context`` before what ends the turn, which ``empty``, an empty response, ends with too."""
    if len(tokens) <= context:
        return tokens
    end = 0
    while end < min(len(tokens), len(empty)) and tokens[-1 - end] == empty[-1 - end]:
        end += 1
    return tokens[: context - end] + tokens[len(tokens) - end :]
