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
VALUES = 1_000
"""Values of all enums together, as OpenAI allows."""
REPEATS = 128
"""The largest count in a pattern that the compiler can hold a response to."""
COUNT = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\{(\d+)(?:,(\d*))?\}", re.DOTALL)
"""Escapes and classes of characters, which are passed over, and counts such as ``{1,128}``."""


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, if it is within the limits.

    Raises:
        ValueError: it is not; the text says which limit.
    """
    values = 0
    for depth, name, value in _walk(schema):
        if depth > DEPTH:
            raise ValueError(f"a schema nested at most {DEPTH} deep")
        if name == "enum" and isinstance(value, list):
            values += len(value)
        if name == "pattern" and isinstance(value, str) and (largest := _largest_count(value)) > REPEATS:
            raise ValueError(f"patterns that repeat at most {REPEATS} times, not {largest}")
    if values > VALUES:
        raise ValueError(f"at most {VALUES} values in all enums together, not {values}")
    if (size := len(json.dumps(schema))) > CHARACTERS:
        raise ValueError(f"a schema of at most {CHARACTERS} characters, not {size}")
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
    digits = [number for match in COUNT.finditer(pattern) for number in match.groups() if number]
    # Numbers of many digits are not worth reading.
    return max((int(number) if len(number) < 10 else 10**10 for number in digits), default=0)
