"""How a conversation becomes text and tokens: shared by trainer and server, so that they cannot disagree.

Works on any tokenizer with the interface of Hugging Face's; imports none.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

Message = dict[str, str]
"""``{"role": ..., "content": ...}``."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: str | None

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> Any:
        """Render a conversation."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenise."""


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The text after which the policy writes its answer."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def render_judged(tokenizer: Tokenizer, messages: Sequence[Message], response: str) -> str:
    """The text that the reward model scores: the conversation with ``response`` as its last turn.

    A response cut off by the length limit is rendered like any other, in calibration and in serving alike.
    """
    conversation = [*messages, {"role": "assistant", "content": response}]
    return str(tokenizer.apply_chat_template(conversation, tokenize=False))


def tokenise(tokenizer: Tokenizer, rendered: str) -> list[int]:
    """Token ids of a rendered text; the template has already written the special tokens."""
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def prompt_key(rendered: str) -> str:
    """The key of a prompt in calibration tables: 32 hexadecimal digits of SHA-256 of its rendered text."""
    return hashlib.sha256(rendered.encode()).hexdigest()[:32]


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the chat template, by which a calibration names the template it was made with."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()
