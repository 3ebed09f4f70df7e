"""JSON schemas that clients send: what is refused at a glance, before anything is made of them.

A grammar is compiled from a schema. That takes time, which grows with depth, size and the number of values, and the
compiler itself keeps no bound.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

CHARACTERS = 65_536
DEPTH = 64
"""Objects and arrays inside each other; an object's property takes two."""
TOO_DEEP = f"a schema nested at most {DEPTH} deep"
VALUES = 1_000
"""Values of all enums together, as OpenAI allows."""
REPEATS = 128
"""The largest count in a pattern that the compiler can hold a response to."""
COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
"""A count in a pattern, such as ``{1,128}``."""


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, if it is within the limits.

    Raises:
        ValueError: it is not; the text says which limit.
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
    """Every value below ``schema`` with its depth and the key it has, without recursion."""
    pending = [(1, "", schema)]
    while pending:
        depth, name, value = pending.pop()
        yield depth, name, value
        if isinstance(value, dict):
            pending += [(depth + 1, str(key), below) for key, below in value.items()]
        elif isinstance(value, list):
            pending += [(depth + 1, "", below) for below in value]


def _largest_count(pattern: str) -> int:
    """The largest number in a count that is neither escaped nor in a class of characters; one pass, whatever comes."""
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
            # Numbers of many digits are not worth reading.
            numbers = [int(digits) if len(digits) < 10 else 10**10 for digits in count.groups() if digits]
            largest = max(largest, *numbers)
        place += 1
    return largest
