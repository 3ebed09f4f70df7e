"""Limits on JSON of any form that clients send: schemas, tools and variables of chat templates.

Schemas are checked before a grammar is compiled from them. Compiling takes time that grows with the depth, the size and
the number of values. The compiler itself has no limits.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

CHARACTERS = 65_536
"""The largest size, in characters of JSON."""
DEPTH = 64
"""The deepest nesting of objects and arrays. A property of an object takes two levels."""
VALUES = 1_000
"""The most values in all enums together, as in OpenAI's API."""
REPEATS = 128
"""The largest repeat count in a pattern. The compiler supports no larger ones."""
COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
"""A repeat count in a pattern, such as ``{1,128}``."""


def check_size(value: Any, what: str) -> None:
    """Check that a JSON value is within the limits of depth and size.

    Args:
        value: The value.
        what: What it is, for the message, such as "a schema".

    Raises:
        ValueError: It is not. The message says which limit it exceeds.
    """
    too_deep = f"{what} nested at most {DEPTH} deep"
    try:
        size = len(json.dumps(value))
    except RecursionError:
        raise ValueError(too_deep) from None
    if size > CHARACTERS:
        raise ValueError(f"{what} of at most {CHARACTERS} characters, not {size}")
    if any(depth > DEPTH for depth, _, _ in _walk(value)):
        raise ValueError(too_deep)


def check_text(value: Any, what: str) -> None:
    """Check that a JSON value is within the limits and can be written into a prompt.

    Args:
        value: The value.
        what: What it is, for the message.

    Raises:
        ValueError: It is too large or too deep, or has a lone surrogate or a number that JSON does not have.
    """
    check_size(value, what)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(f"{what} of whole characters and finite numbers") from error


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Check that a schema is within the limits. Returns it.

    Raises:
        ValueError: It is not, or cannot be written as JSON. The message says why.
    """
    check_text(schema, "a schema")
    values = 0
    for _, name, value in _walk(schema):
        if name == "enum" and isinstance(value, list):
            values += len(value)
        if name == "pattern" and isinstance(value, str) and (largest := _largest_count(value)) > REPEATS:
            raise ValueError(f"patterns that repeat at most {REPEATS} times, not {largest}")
    if values > VALUES:
        raise ValueError(f"at most {VALUES} values in all enums together, not {values}")
    return schema


def _walk(root: Any) -> Iterator[tuple[int, str, Any]]:
    """Yield every value in ``root`` with its depth and its key, without recursion."""
    pending = [(1, "", root)]
    while pending:
        depth, name, value = pending.pop()
        yield depth, name, value
        if isinstance(value, dict):
            pending += [(depth + 1, str(key), below) for key, below in value.items()]
        elif isinstance(value, list):
            pending += [(depth + 1, "", below) for below in value]


def _largest_count(pattern: str) -> int:
    """The largest repeat count in a pattern, outside of character classes and escapes. It takes one pass."""
    largest, place, in_class = 0, 0, False
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            place += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character == "{" and (count := COUNT.match(pattern, place)):
            # Converting a number of many digits takes long, and such a number is too large anyway.
            numbers = [int(digits) if len(digits) < 10 else 10**10 for digits in count.groups() if digits]
            largest = max(largest, *numbers)
        place += 1
    return largest
