"""Control tokens, and the places where a text that spells one out is cut.

A control token is a special token of the tokenizer, such as ``<|end|>``, or another added token that the chat template
writes itself. The module works on any tokenizer with the interface of Hugging Face's, and imports none.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

SAMPLE: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "system", "content": "a"}, {"role": "user", "content": "b"}),
    ({"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}),
)
"""Conversations that show which tokens a template writes around turns. A template may refuse some of them.

They do not end with the assistant, because some templates write tokens such as ``<think>`` there, which belong to an
answer.
"""
CACHE_SIZE = 16
"""Tokenizers whose control tokens are cached."""
COMPOSITION = {"NoneType": 1, "NFC": 4}
"""Most characters that a normalizer turns into one, by its class: NFC composes a letter and three accents."""


class Tokenizer(Protocol):
    """The part of the interface of a Hugging Face tokenizer that this library uses."""

    chat_template: str | None

    def __hash__(self) -> int:
        """Hash the tokenizer. Its control tokens are cached by the hash."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, as text."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens that were added to the vocabulary, special or not, by id."""

    def apply_chat_template(self, conversation: Sequence[dict[str, Any]], **options: Any) -> Any:
        """Render a conversation."""

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Tokenise one text or several."""


def control_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """List the texts that only a chat template may turn into tokens of their own.

    The result is cached for each tokenizer and template. Set the special tokens of a tokenizer before its first use.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The texts, each of at least two characters.
    """
    return _control_tokens(tokenizer, tokenizer.chat_template)


def fewest_tokens(tokenizer: Tokenizer, characters: int) -> int:
    """Compute a lower bound on the number of tokens of a text.

    Args:
        tokenizer: The tokenizer.
        characters: Number of characters of the text.

    Returns:
        The bound; 0 for tokenizers without a simple one.
    """
    longest = _longest_token(tokenizer)
    return -(-characters // longest) if longest else 0


def cut_answer(tokens: list[int], empty: list[int], length: int) -> list[int]:
    """Cut the end of an answer, so that a text fits. What stands after the answer is kept.

    Args:
        tokens: Token ids of a conversation with its answer.
        empty: Token ids of the same conversation with an empty answer, which has the same end.
        length: Most tokens.

    Returns:
        At most ``length`` tokens.

    Examples:
        >>> cut_answer([1, 2, 3, 4, 9], [1, 9], 4), cut_answer([1, 2, 9], [1, 9], 4)
        ([1, 2, 3, 9], [1, 2, 9])
    """
    if len(tokens) <= length:
        return tokens
    end = 0
    while end < min(len(tokens), len(empty)) and tokens[-1 - end] == empty[-1 - end]:
        end += 1
    return tokens[: length - end] + tokens[len(tokens) - end :]


def cut_control_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Cut a text so that no piece contains a whole control token, however the tokens overlap.

    Args:
        tokenizer: The tokenizer that will read the pieces.
        text: The text.

    Returns:
        The pieces, which are the text when joined. There is one piece if the text has no control token.
    """
    places = _cut_places(tokenizer, text)
    ends = [*places, len(text)]
    return [text[start:end] for start, end in zip([0, *places], ends, strict=True)]


def _cut_places(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = control_tokens(tokenizer)
    places = _second_characters(tokens, text)
    if not places and _second_characters(tokens, _normalise(tokenizer, text)):
        # The tokenizer would see a token in its own form of the text, which may have letters of another width or case.
        # Its place in the original is unknown, so every character becomes a piece.
        return list(range(1, len(text)))
    return places


def _second_characters(tokens: Iterable[str], text: str) -> list[int]:
    """Find the place after the first character of every occurrence of the tokens."""
    places = set()
    for token in tokens:
        start = text.find(token)
        while start >= 0:
            places.add(start + 1)
            start = text.find(token, start + 1)
    return sorted(places)


def _normalise(tokenizer: Any, text: str) -> str:
    """Compute the form of a text in which the tokenizer looks for some of its added tokens."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return str(normalizer.normalize_str(text)) if normalizer and _has_normalised_tokens(tokenizer) else text


@lru_cache(CACHE_SIZE)
def _has_normalised_tokens(tokenizer: Any) -> bool:
    return any(token.normalized for token in tokenizer.added_tokens_decoder.values())


@lru_cache(CACHE_SIZE)
def _control_tokens(tokenizer: Any, template: str | None) -> frozenset[str]:
    added_tokens = tokenizer.added_tokens_decoder.values()
    special = {*tokenizer.all_special_tokens, *(token.content for token in added_tokens if token.special)}
    others = {token.content for token in added_tokens} - special
    renderings = ""
    for messages in SAMPLE if others and template else ():
        with suppress(Exception):  # a template may refuse a system message, for one
            renderings += str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    # A single character cannot be cut, and a space that a template writes is no control token.
    control = special | {token for token in others if token in renderings}
    return frozenset(token for token in control if len(token) > 1 and not token.isspace())


@lru_cache(CACHE_SIZE)
def _longest_token(tokenizer: Any) -> int:
    """Count the bytes of the longest token of a byte-level tokenizer that reads every byte of a text; 0 for others.

    Other tokenizers may read a long text as one unknown token, or drop characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return 0
    factor = COMPOSITION.get(type(backend.normalizer).__name__)
    return factor * max(map(len, tokenizer.get_vocab())) if factor else 0
