"""Turns the tokens of an answer that is drawn in several parts into text, as the engine would in one."""

import copy
from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a text ends with whose last character lacks bytes."""


class Detokenizer:
    """The text of a growing answer. It works token by token, exactly as vLLM does.

    A token may hold a part of a character, and a stop string may begin in one block and end in the next. So blocks are
    not decoded one by one.

    Args:
        tokenizer: The policy's tokenizer.
        prompt: Token ids of the prompt. A tokenizer may write a token in another way after them than at the start.
        stop: Stop strings. The text ends before the first of them.
        min_tokens: A stop string counts only after so many tokens.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._tokenizer, self._stop, self._min_tokens = tokenizer, tuple(stop), min_tokens
        self._hold = max(map(len, self._stop), default=1) - 1
        self._tokens, self._written, self._prefix = tuple(prompt), 0, ""
        self._count = 0
        self.text = ""
        """The text so far, without the character that is not complete."""

    @property
    def settled(self) -> str:
        """The part of the text that no further token changes: the rest may become a stop string."""
        return self.text[: max(0, len(self.text) - self._hold)]

    def copy(self) -> "Detokenizer":
        """Return another one that can go on in another way."""
        return copy.copy(self)  # all attributes are values

    def add(self, token: int) -> bool:
        """Add the next token.

        Returns:
            Whether it completes a stop string.
        """
        new = self._decode_next(token)
        self._count += 1
        self.text += new
        if not new or self._count <= self._min_tokens:
            return False
        ends = []
        for stop in self._stop:
            start = self.text.find(stop, max(0, len(self.text) - len(new) - len(stop) + 1))
            if start >= 0:
                ends.append((start + len(stop), start))
        if not ends:
            return False
        self.text = self.text[: min(ends, key=lambda end: end[0])[1]]
        return True

    def _decode_next(self, token: int) -> str:
        """Return the text that a token adds. This is the algorithm of ``DecodeStream`` in the library tokenizers."""
        if not self._prefix and self._tokens:
            self._prefix, self._written = self._decode(self._tokens), len(self._tokens)
            if self._prefix.endswith(UNFINISHED):
                self._prefix, self._written = "", 0
        self._tokens = (*self._tokens, token)
        text = self._decode(self._tokens)
        if len(text) <= len(self._prefix) or text.endswith(UNFINISHED):
            return ""
        if not text.startswith(self._prefix):  # bytes that are no text; vLLM starts anew at this token as well
            self._tokens, self._written, self._prefix = (), 0, ""
            return self._decode_next(token)
        new = text[len(self._prefix) :]
        rest = self._tokens[self._written :]
        self._written, self._tokens = len(self._tokens) - self._written, rest
        self._prefix = self._decode(rest)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
