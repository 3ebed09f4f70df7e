"""Limits on the JSON schemas that clients send. They are checked before a grammar is compiled from a schema.

Compiling takes time that grows with the depth, the size and the number of values. The compiler itself has no limits.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

CHARACTERS = 65_536
"""The largest size of a schema, in characters of JSON."""
DEPTH = 64
"""The deepest nesting of objects and arrays. A property of an object takes two levels."""
TOO_DEEP = f"a schema nested at most {DEPTH} deep"
VALUES = 1_000
"""The most values in all enums together, as in OpenAI's API."""
REPEATS = 128
"""The largest repeat count in a pattern. The compiler supports no larger ones."""
COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
"""A repeat count in a pattern, such as ``{1,128}``."""


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Check that a schema is within the limits. Returns it.

    Raises:
        ValueError: It is not. The message says which limit it exceeds.
    """
    try:
        size = len(json.dumps(schema))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if size > CHARACTERS:
        raise ValueError(f"a schema of at most {CHARACTERS} characters, not {size}")
    values = 0
    for depth, name, value in _walk(schema):
        if depth > DEPTH:
            raise ValueError(TOO_DEEP)
        if name == "enum" and isinstance(value, list):
            values += len(value)
        if name == "pattern" and isinstance(value, str) and (largest := _largest_count(value)) > REPEATS:
            raise ValueError(f"patterns that repeat at most {REPEATS} times, not {largest}")
    if values > VALUES:
        raise ValueError(f"at most {VALUES} values in all enums together, not {values}")
    return schema


def _walk(schema: Any) -> Iterator[tuple[int, str, Any]]:
    """Yield every value in ``schema`` with its depth and its key, without recursion."""
    pending = [(1, "", schema)]
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
