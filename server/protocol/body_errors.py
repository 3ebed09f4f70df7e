"""Creates the error for a request body that is not valid. The error does not repeat texts of the body."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from infalign.errors import truncate
from infalign.validation import explain
from server.errors import BadRequest

NAME_FIELDS = {"model", "role", "type", "tool_choice", "function_call", "modalities"}
"""Fields whose values are names. Values of other fields may be text of a prompt or response."""
NAME_PATTERN = re.compile(r"[\w.:/-]{1,64}", re.ASCII)
"""Names that an error may repeat."""


class _Description:
    """Stands for a value in an error message."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def body_error(errors: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> BadRequest:
    """Create the error for a body that pydantic refused.

    Args:
        errors: Pydantic's errors, at least one.
        model: The model of the body.
    """
    why = explain(errors, model, _describe_value)
    return BadRequest(str(why), why.param)


def _describe_value(error: Mapping[str, Any]) -> object:
    """Return the value of an error, or a description of it if it may be text of a prompt or response."""
    match error["input"]:
        case None | bool() | float():
            return error["input"]
        case int() as number:
            return _Description(truncate(str(number)))
        case str() as text if (
            NAME_FIELDS & set(error["loc"]) and NAME_PATTERN.fullmatch(text) and error["type"] != "extra_forbidden"
        ):
            return text
        case str() as text:
            return _Description(f"text of {len(text)} characters")
        case list() as items:
            return _Description(f"a list of {len(items)}")
        case dict() as fields:
            return _Description(f"an object of {len(fields)} fields")
        case other:
            return _Description(type(other).__name__)
