"""Criteria: what counts as a hit, as users write it.

A *hit* is a sample that a safety team looks for, such as an unsafe response.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infalign.errors import InvalidValue, one_line

Flags = NDArray[np.bool_]
ACCEPTED = "reward<X, quantile<X or judge<X (or >), text~REGEX, or labels"
"""What error messages say is accepted."""
NUMBER = re.compile(r"(reward|quantile|judge)\s*([<>])\s*(-?[0-9.]+(?:e-?[0-9]+)?)", re.IGNORECASE)


class Criterion(ABC):
    """Decides which samples are hits."""

    columns: tuple[str, ...]
    """Columns of a sample that it reads."""

    @abstractmethod
    def flag(self, columns: Mapping[str, Sequence[Any]]) -> Flags:
        """Decide which samples are hits.

        Args:
            columns: The columns, of equal length S.

        Returns:
            (S,) truth values.
        """


@dataclass(frozen=True)
class Threshold(Criterion):
    """A number of the sample lies below or above a threshold."""

    column: str
    sign: str
    value: float

    def __str__(self) -> str:
        return f"{self.column} {self.sign} {self.value:g}"

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The column with the number."""
        return (self.column,)

    def flag(self, columns: Mapping[str, Sequence[Any]]) -> Flags:
        """Compare the numbers. See :meth:`Criterion.flag`."""
        values = np.asarray(columns[self.column], dtype=np.float64)
        return np.asarray(values < self.value if self.sign == "<" else values > self.value)


@dataclass(frozen=True)
class Pattern(Criterion):
    """The text matches a regular expression somewhere, in capitals or not."""

    expression: str
    columns = ("text",)

    def __str__(self) -> str:
        return f"text ~ {self.expression}"

    def flag(self, columns: Mapping[str, Sequence[Any]]) -> Flags:
        """Search the texts. See :meth:`Criterion.flag`."""
        pattern = re.compile(self.expression, re.IGNORECASE)
        return np.array([pattern.search(text) is not None for text in columns["text"]], dtype=bool)


@dataclass(frozen=True)
class Labels(Criterion):
    """A human says so."""

    columns = ("label",)

    def __str__(self) -> str:
        return "labels"

    def flag(self, columns: Mapping[str, Sequence[Any]]) -> Flags:
        """Take the labels. See :meth:`Criterion.flag`."""
        return np.asarray(columns["label"], dtype=bool)


def parse_criterion(text: str, option: str = "--hit") -> Criterion:
    """Read a criterion.

    Args:
        text: ``reward<-3``, ``quantile<0.05``, ``judge<0``, ``text~sorry|cannot`` or ``labels``.
        option: Option that it is the value of, for messages.

    Raises:
        InvalidValue: The text is no criterion.

    Examples:
        >>> str(parse_criterion("quantile<0.05"))
        'quantile < 0.05'
    """
    if match := NUMBER.fullmatch(text.strip()):
        try:
            return Threshold(match[1].lower(), match[2], float(match[3]))
        except ValueError:
            raise InvalidValue(option, text, ACCEPTED) from None
    name, tilde, expression = text.partition("~")
    if tilde and name.strip() == "text" and expression:
        try:
            re.compile(expression)
        except re.error as error:
            raise InvalidValue(option, text, f"a regular expression after text~ ({one_line(error)})") from error
        return Pattern(expression.strip())
    if text.strip() == "labels":
        return Labels()
    raise InvalidValue(option, text, ACCEPTED)
