"""How a conversation becomes text and tokens: shared by trainer and server, so that they cannot disagree.

Works on any tokenizer with the interface of Hugging Face's; imports none.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from infalign.errors import TemplateRefusal, one_line

Message = dict[str, str]
"""``{"role": ..., "content": ...}``."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: str | None
    added_tokens_decoder: Any

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> Any:
        """Render a conversation."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenise."""


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text after which the policy writes its answer.

    Raises:
        TemplateRefusal: the chat template does not render the conversation.
    """
    return _render(tokenizer, list(messages), add_generation_prompt=True)


def render_judged(tokenizer: Tokenizer, messages: Sequence[Message], response: str) -> str:
    """The text that the reward model scores: the conversation with ``response`` as its last turn.

    A response cut off by the length limit is rendered like any other, in calibration and in serving alike.

    Raises:
        TemplateRefusal: the chat template does not render the conversation.
    """
    return _render(tokenizer, [*messages, {"role": "assistant", "content": response}])


def _render(tokenizer: Tokenizer, conversation: list[Message], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))
    except Exception as error:  # whatever a template raises: its own exceptions, undefined names, wrong types
        raise TemplateRefusal(one_line(error)) from error


def control_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """The texts of special tokens, and of other added tokens that the chat template writes."""
    template = tokenizer.chat_template or ""
    tokens = tokenizer.added_tokens_decoder.values()
    return frozenset(
        token.content for token in tokens if token.special or (token.content.strip() and token.content in template)
    )


def tokenise(tokenizer: Tokenizer, rendered: str) -> list[int]:
    """Token ids of a rendered text; the template has already written the special tokens."""
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def prompt_key(rendered: str) -> str:
    """The key of a prompt in calibration tables: 32 hexadecimal digits of SHA-256 of its rendered text."""
    return hashlib.sha256(rendered.encode()).hexdigest()[:32]


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the chat template, by which a calibration names the template it was made with."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()
