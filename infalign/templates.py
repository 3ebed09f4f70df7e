"""Conversations as text and tokens. Trainer and server share this module, so that they cannot disagree.

Only the chat template may write control tokens (:mod:`infalign.tokens`). If the author of a message types the same
characters, the rendered text is cut inside them, and each piece is tokenised on its own. No piece contains a whole
control token, so the characters become ordinary tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infalign.errors import TemplateRefusal, one_line
from infalign.tokens import Tokenizer, cut_control_tokens

Message = dict[str, Any]
"""A turn of a conversation: ``{"role": ..., "content": ...}``.

Turns that call tools or answer a call have further keys. Their values are JSON.
"""
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


def render_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    variables: Mapping[str, Any] | None = None,
    continued: bool = False,
) -> Rendering:
    """Render the text after which the policy writes its answer.

    Args:
        tokenizer: The tokenizer, with its chat template.
        messages: The conversation up to the answer.
        variables: Further variables of the chat template, such as ``tools``. Their values are JSON.
        continued: Whether the answer continues the last message.

    Returns:
        The rendered text.

    Raises:
        TemplateRefusal: The chat template does not accept the messages or the variables.
    """
    options = {"continue_final_message": True} if continued else {"add_generation_prompt": True}
    return _render(tokenizer, messages, variables, **options)


def render_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    response: str,
    variables: Mapping[str, Any] | None = None,
) -> Rendering:
    """Render the text that the reward model scores, which ends with the response.

    A response that was cut off by the length limit is rendered like any other, in calibration and in serving.

    Args:
        tokenizer: The tokenizer of the reward model, with its chat template.
        messages: The conversation up to the response.
        response: The response.
        variables: Further variables of the chat template.

    Returns:
        The rendered text.

    Raises:
        TemplateRefusal: The chat template does not accept the conversation.
    """
    return _render(tokenizer, [*messages, {"role": "assistant", "content": response}], variables)


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


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], variables: Mapping[str, Any] | None, **options: bool
) -> Rendering:
    marker, (conversation, values) = _mark(tokenizer, messages, variables or {})

    def pieces(**clock: Any) -> tuple[str, ...]:
        try:
            text = str(tokenizer.apply_chat_template(conversation, tokenize=False, **options, **values, **clock))
        except Exception as error:  # templates are programs: they raise errors of their own and of every library type
            reason = one_line(error).replace(marker or "\0", "")
            if "continue_final_message is set" in reason:  # the rest of the message is the text of the conversation
                reason = "it drops or changes the message to continue"
            raise TemplateRefusal(reason) from error
        return tuple(text.split(marker)) if marker else (text,)

    if CLOCK not in (tokenizer.chat_template or ""):
        return Rendering(pieces())
    return Rendering(pieces(), pieces(**{CLOCK: FIXED_DATE.strftime}))


def _mark(
    tokenizer: Tokenizer, messages: Sequence[Message], variables: Mapping[str, Any]
) -> tuple[str | None, tuple[list[Message], dict[str, Any]]]:
    """Put a marker inside each control token that was typed. The marker is None if there is no such token."""
    typed_texts = {text for part in (*messages, variables) for text in _texts(part)}
    cut_texts = {text: pieces for text in typed_texts if len(pieces := cut_control_tokens(tokenizer, text)) > 1}
    if not cut_texts:
        return None, (list(messages), dict(variables))
    marker = _unused_character(typed_texts)
    marked_texts = {text: marker.join(pieces) for text, pieces in cut_texts.items()}

    def mark(part: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value if key == "role" else _replace(value, marked_texts) for key, value in part.items()}

    return marker, ([mark(message) for message in messages], mark(variables))


def _texts(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield all texts of a message or of variables, except the role and the names of its fields."""
    pending = [value for key, value in part.items() if key != "role"]
    while pending:
        match pending.pop():
            case str() as text:
                yield text
            case list() as items:
                pending += items
            case dict() as fields:
                pending += [*fields, *fields.values()]


def _replace(value: Any, replacements: Mapping[str, str]) -> Any:
    """Replace texts in a JSON value, also where they are keys."""
    match value:
        case str():
            return replacements.get(value, value)
        case list():
            return [_replace(item, replacements) for item in value]
        case dict():
            return {replacements.get(key, key): _replace(below, replacements) for key, below in value.items()}
    return value


def _unused_character(texts: Iterable[str]) -> str:
    """Choose a character for private use that occurs in none of the texts."""
    characters = set().union(*texts)
    for code in range(0x10FFFD, 0xFFFFF, -1):
        if chr(code) not in characters:
            return chr(code)
    raise TemplateRefusal("the text uses every character of Unicode's last plane for private use")
