"""The error for a body that is not accepted, without the text that the body holds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from infalign.validation import beginning, explain
from server.errors import BadRequest

NAMES = {"model", "role", "type", "tool_choice", "function_call", "modalities"}
"""Fields whose values are names, not text of a prompt or response."""
NAME = re.compile(r"[\w.:/-]{1,64}", re.ASCII)


class _Described:
    """What an error writes in the place of a value."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def refuse(errors: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> BadRequest:
    """The answer to a body in which pydantic found ``errors``.

    Args:
        errors: of the body, at least one.
        model: what the body should have been.
    """
    why = explain(errors, model, _shown)
    return BadRequest(str(why), why.param)


def _shown(error: Mapping[str, Any]) -> object:
    """The value of an error, or a description of one that may be text of a prompt or response."""
    match error["input"]:
        case None | bool() | float():
            return error["input"]
        case int() as number:
            return _Described(beginning(str(number)))
        case str() as text if NAMES & set(error["loc"]) and NAME.fullmatch(text) and error["type"] != "extra_forbidden":
            return text
        case str() as text:
            return _Described(f"text of {len(text)} characters")
        case list() as items:
            return _Described(f"a list of {len(items)}")
        case dict() as fields:
            return _Described(f"an object of {len(fields)} fields")
        case other:
            return _Described(type(other).__name__)
