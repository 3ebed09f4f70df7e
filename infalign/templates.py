"""How a conversation becomes text and tokens. Trainer and server share this module, so that they cannot disagree.

Text stays text. A control token is a special token of the tokenizer, such as ``<|end|>``, or another added token that
the chat template writes itself. Only the template may write one. Where the author of a message types the same
characters, the rendered text is cut inside them, and each piece is tokenised on its own: no piece holds a whole control
token, so the characters become ordinary tokens.

The module works on any tokenizer with the interface of Hugging Face's, and imports none.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

from infalign.errors import TemplateRefusal, one_line

Message = dict[str, str]
"""``{"role": ..., "content": ...}``."""

CLOCK = "strftime_now"
"""The function by which chat templates read the clock."""
SOME_DAY = datetime(2025, 1, 1)
"""The time at which prompts are rendered for their keys."""
SAMPLE: tuple[tuple[Message, ...], ...] = (
    ({"role": "system", "content": "a"}, {"role": "user", "content": "b"}),
    ({"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}),
)
"""Conversations that show which tokens a template writes around turns; a template may refuse some.

They do not end with the assistant: there some templates write tokens such as ``<think>``, which belong to an answer.
"""
KNOWN_TOKENIZERS = 16
SHRINKS = {"NoneType": 1, "NFC": 4}
"""How many characters a normalizer makes one of at the most, by its name: NFC composes a letter and three accents."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: str | None

    def __hash__(self) -> int:
        """What is known of a tokenizer is kept by it."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, as text."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens that were added to the vocabulary, special or not, by id."""

    def apply_chat_template(self, conversation: Sequence[Message], **options: Any) -> Any:
        """Render a conversation."""

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Tokenise one text or several."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered text, cut inside the control tokens that its author typed."""

    pieces: tuple[str, ...]
    """The text in parts; one part where nobody typed a control token."""
    undated: tuple[str, ...] | None = None
    """The same on another day, where the chat template reads the clock."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendering:
    """Render the text after which the policy writes its answer.

    Raises:
        TemplateRefusal: the chat template does not accept the messages.
    """
    return _render(tokenizer, messages, add_generation_prompt=True)


def render_judged(tokenizer: Tokenizer, messages: Sequence[Message], response: str) -> Rendering:
    """Render the text that the reward model scores: the conversation with ``response`` as its last turn.

    A response cut off by the length limit is rendered like any other, in calibration and in serving alike.

    Raises:
        TemplateRefusal: the chat template does not accept the conversation.
    """
    return _render(tokenizer, [*messages, {"role": "assistant", "content": response}])


def render_text(tokenizer: Tokenizer, text: str, end: str = "") -> Rendering:
    """Render a raw text, which no chat template touches.

    Args:
        tokenizer: the one that will read it.
        text: written by a person or a model; a control token in it stays text.
        end: control tokens that follow it, such as the end token.
    """
    *before, last = _cut(text, _inside_control_tokens(tokenizer, text))
    return Rendering((*before, last + end))


def tokenise(tokenizer: Tokenizer, rendering: Rendering) -> list[int]:
    """Token ids of a rendered text; the template has already written the special tokens."""
    if len(rendering.pieces) == 1:
        return list(tokenizer(rendering.pieces[0], add_special_tokens=False)["input_ids"])
    each = tokenizer(list(rendering.pieces), add_special_tokens=False)["input_ids"]
    return [token for piece in each for token in piece]


def prompt_key(rendering: Rendering) -> str:
    """The key of a prompt in calibration tables: 32 hexadecimal digits that depend on its rendered text.

    The date does not count, where the chat template writes one. A typed control token is another prompt than one that
    the template wrote.
    """
    pieces = rendering.pieces if rendering.undated is None else rendering.undated
    if len(pieces) == 1:
        return hashlib.sha256(pieces[0].encode()).hexdigest()[:32]
    each = b"".join(hashlib.sha256(piece.encode()).digest() for piece in pieces)
    return hashlib.blake2b(each, digest_size=16, person=b"pieces").hexdigest()


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the chat template, by which a calibration names the template it was made with."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()


def control_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """The texts that only a chat template may turn into tokens of their own.

    They are computed once for each tokenizer and template: settle the special tokens of a tokenizer before it reads.
    """
    return _control_tokens(tokenizer, tokenizer.chat_template)


def fewest_tokens(tokenizer: Tokenizer, characters: int) -> int:
    """A lower bound on the tokens of any text of so many characters; 0 where there is none to be had cheaply."""
    longest = _longest_token(tokenizer)
    return -(-characters // longest) if longest else 0


def _render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendering:
    marker, marked = _mark(tokenizer, messages)

    def pieces(**clock: Any) -> tuple[str, ...]:
        try:
            text = str(
                tokenizer.apply_chat_template(
                    marked, tokenize=False, add_generation_prompt=add_generation_prompt, **clock
                )
            )
        except Exception as error:  # templates are programs: they raise errors of their own and of every library type
            raise TemplateRefusal(one_line(error).replace(marker or "\0", "")) from error
        return tuple(text.split(marker)) if marker else (text,)

    if CLOCK not in (tokenizer.chat_template or ""):
        return Rendering(pieces())
    return Rendering(pieces(), pieces(**{CLOCK: SOME_DAY.strftime}))


def _mark(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """The messages with a marker inside each control token that was typed, and the marker, where there is any."""
    places = [_inside_control_tokens(tokenizer, message["content"]) for message in messages]
    if not any(places):
        return None, list(messages)
    marker = _absent([message["content"] for message in messages])
    marked = [
        {**message, "content": marker.join(_cut(message["content"], inside))}
        for message, inside in zip(messages, places, strict=True)
    ]
    return marker, marked


def _inside_control_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Where to cut ``text`` so that no piece holds a whole control token, however they overlap."""
    tokens = control_tokens(tokenizer)
    places = _after_first_character(tokens, text)
    if not places and _after_first_character(tokens, _normalised(tokenizer, text)):
        # The tokenizer would find one in its own form of the text, in letters of another width or case for example.
        # Where that is in the original is not known, so every character is a piece.
        return list(range(1, len(text)))
    return places


def _after_first_character(tokens: Iterable[str], text: str) -> list[int]:
    places = set()
    for token in tokens:
        start = text.find(token)
        while start >= 0:
            places.add(start + 1)
            start = text.find(token, start + 1)
    return sorted(places)


def _cut(text: str, places: Sequence[int]) -> list[str]:
    ends = [*places, len(text)]
    return [text[start:end] for start, end in zip([0, *places], ends, strict=True)]


def _absent(texts: Sequence[str]) -> str:
    """A character for private use that occurs in none of ``texts``."""
    used = set().union(*texts)
    for code in range(0x10FFFD, 0xFFFFF, -1):
        if chr(code) not in used:
            return chr(code)
    raise TemplateRefusal("the text uses every character of Unicode's last plane for private use")


def _normalised(tokenizer: Any, text: str) -> str:
    """The form of ``text`` in which the tokenizer looks for some of its added tokens."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return str(normalizer.normalize_str(text)) if normalizer and _finds_normalised(tokenizer) else text


@lru_cache(KNOWN_TOKENIZERS)
def _finds_normalised(tokenizer: Any) -> bool:
    return any(token.normalized for token in tokenizer.added_tokens_decoder.values())


@lru_cache(KNOWN_TOKENIZERS)
def _control_tokens(tokenizer: Any, template: str | None) -> frozenset[str]:
    added = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    others = {token.content for token in added} - special
    written = ""
    for messages in SAMPLE if others and template else ():
        with suppress(Exception):  # a template may refuse a system message, for one
            written += str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    # A single character cannot be cut, and a space that a template writes is no control.
    control = special | {token for token in others if token in written}
    return frozenset(token for token in control if len(token) > 1 and not token.isspace())


@lru_cache(KNOWN_TOKENIZERS)
def _longest_token(tokenizer: Any) -> int:
    """Bytes of the longest token of a byte-level tokenizer that reads every byte of a text; 0 for any other.

    Others may read much text as one unknown token, or drop characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return 0
    composed = SHRINKS.get(type(backend.normalizer).__name__)
    return composed * max(map(len, tokenizer.get_vocab())) if composed else 0
