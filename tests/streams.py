"""Streams and their events, read as strictly as clients read them."""

import json
from collections.abc import Iterator
from typing import Any


def strict(text: str) -> Any:
    """JSON without NaN and infinities, which is all that there is."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def events(text: str) -> Iterator[tuple[str, Any]]:
    """(event, data) of a stream, as clients read it that split lines wherever Unicode does."""
    event = "message"
    for line in text.splitlines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: ") and line != "data: [DONE]":
            yield event, strict(line.removeprefix("data: "))
        else:
            assert line in ("", "data: [DONE]") or line.startswith(":"), line
