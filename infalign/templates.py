"""Conversations as text and tokens. Trainer and server share this module, so that they cannot disagree.

Only the chat template may write control tokens (:mod:`infalign.tokens`). If the author of a message types the same
characters, the rendered text is cut inside them, and each piece is tokenised on its own. No piece contains a whole
control token, so the characters become ordinary tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infalign.errors import TemplateRefusal, one_line
from infalign.tokens import Tokenizer, cut_control_tokens

Message = dict[str, str]
"""A turn of a conversation: ``{"role": ..., "content": ...}``."""
CLOCK = "strftime_now"
"""The function by which chat templates read the clock."""
FIXED_DATE = datetime(2025, 1, 1)
"""The time at which prompts are rendered for their keys."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered text, cut inside the control tokens that its author typed.

    Args:
        pieces: The text in parts; one part if nobody typed a control token.
        undated_pieces: The same, rendered on a fixed date, if the chat template reads the clock.
    """

    pieces: tuple[str, ...]
    undated_pieces: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendering:
    """Render the text after which the policy writes its answer.

    Args:
        tokenizer: The tokenizer, with its chat template.
        messages: The conversation up to the answer.

    Returns:
        The rendered text.

    Raises:
        TemplateRefusal: The chat template does not accept the messages.
    """
    return _render(tokenizer, messages, add_generation_prompt=True)


def render_conversation(tokenizer: Tokenizer, messages: Sequence[Message], response: str) -> Rendering:
    """Render the text that the reward model scores, which ends with the response.

    A response that was cut off by the length limit is rendered like any other, in calibration and in serving.

    Args:
        tokenizer: The tokenizer of the reward model, with its chat template.
        messages: The conversation up to the response.
        response: The response.

    Returns:
        The rendered text.

    Raises:
        TemplateRefusal: The chat template does not accept the conversation.
    """
    return _render(tokenizer, [*messages, {"role": "assistant", "content": response}])


def render_text(tokenizer: Tokenizer, text: str, end: str = "") -> Rendering:
    """Render a raw text, without a chat template.

    Args:
        tokenizer: The tokenizer that will read it.
        text: A text by a person or a model. A control token in it stays text.
        end: Control tokens to append, such as the end token.

    Returns:
        The rendered text.
    """
    *before, last = cut_control_tokens(tokenizer, text)
    return Rendering((*before, last + end))


def tokenise(tokenizer: Tokenizer, rendering: Rendering) -> list[int]:
    """Tokenise a rendered text.

    Args:
        tokenizer: The tokenizer. It adds no special tokens, since the template has written them.
        rendering: The rendered text.

    Returns:
        The token ids.
    """
    if len(rendering.pieces) == 1:
        return list(tokenizer(rendering.pieces[0], add_special_tokens=False)["input_ids"])
    each = tokenizer(list(rendering.pieces), add_special_tokens=False)["input_ids"]
    return [token for piece in each for token in piece]


def prompt_key(rendering: Rendering) -> str:
    """Compute the key of a prompt in calibration tables.

    The key depends on the rendered text, but not on the date if the chat template writes one. A control token that the
    author typed makes another prompt than one that the template wrote.

    Args:
        rendering: The prompt, from :func:`render_prompt`.

    Returns:
        32 hexadecimal digits.
    """
    pieces = rendering.pieces if rendering.undated_pieces is None else rendering.undated_pieces
    if len(pieces) == 1:
        return hashlib.sha256(pieces[0].encode()).hexdigest()[:32]
    each = b"".join(hashlib.sha256(piece.encode()).digest() for piece in pieces)
    return hashlib.blake2b(each, digest_size=16, person=b"pieces").hexdigest()


def template_hash(tokenizer: Tokenizer) -> str:
    """Compute the hash by which a calibration names its chat template.

    Args:
        tokenizer: The tokenizer.

    Returns:
        SHA-256 of the template, as 64 hexadecimal digits.
    """
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()


def _render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendering:
    marker, conversation = _mark(tokenizer, messages)

    def pieces(**clock: Any) -> tuple[str, ...]:
        try:
            text = str(
                tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=add_generation_prompt, **clock
                )
            )
        except Exception as error:  # templates are programs: they raise errors of their own and of every library type
            raise TemplateRefusal(one_line(error).replace(marker or "\0", "")) from error
        return tuple(text.split(marker)) if marker else (text,)

    if CLOCK not in (tokenizer.chat_template or ""):
        return Rendering(pieces())
    return Rendering(pieces(), pieces(**{CLOCK: FIXED_DATE.strftime}))


def _mark(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """Put a marker inside each control token that was typed. The marker is None if there is no such token."""
    contents = [cut_control_tokens(tokenizer, message["content"]) for message in messages]
    if all(len(pieces) == 1 for pieces in contents):
        return None, list(messages)
    marker = _unused_character([message["content"] for message in messages])
    return marker, [
        {**message, "content": marker.join(pieces)} for message, pieces in zip(messages, contents, strict=True)
    ]


def _unused_character(texts: Sequence[str]) -> str:
    """Choose a character for private use that occurs in none of the texts."""
    characters = set().union(*texts)
    for code in range(0x10FFFD, 0xFFFFF, -1):
        if chr(code) not in characters:
            return chr(code)
    raise TemplateRefusal("the text uses every character of Unicode's last plane for private use")
