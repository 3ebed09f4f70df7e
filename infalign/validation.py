"""One line for a value that pydantic refused: the field, what came, what is accepted."""

import types
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from infalign.errors import InvalidValue

SHOWN = 80


def explain(error: Mapping[str, Any], model: type[BaseModel]) -> InvalidValue:
    """The first of ``ValidationError.errors()`` (or any) as our own error, with the nearest known key if unknown."""
    path = [part for part in error["loc"] if part != "body" and not _is_union_tag(part)]
    field = ".".join(map(str, path)) or "body"
    given = error.get("input")
    if error["type"] == "missing":
        return InvalidValue(field, None, "this field is required")
    if error["type"] == "extra_forbidden":
        return InvalidValue(field, _short(given), _nearest(path, model))
    message = str(error["msg"]).removeprefix("Value error, ")
    return InvalidValue(field, _short(given), message)


def _nearest(path: list[Any], model: type[BaseModel]) -> str:
    owner: type[BaseModel] | None = model
    for part in path[:-1]:
        owner = _model_of(owner.model_fields[part].annotation) if owner and part in owner.model_fields else owner
    known = list(owner.model_fields) if owner else []
    near = get_close_matches(str(path[-1]), known, n=1)
    return f"no such key; did you mean {near[0]}?" if near else f"no such key; known: {', '.join(known)}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return next((found for arg in get_args(annotation) if (found := _model_of(arg))), None)
    return None


def _is_union_tag(part: object) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a field."""
    return isinstance(part, str) and (part in ("str", "constrained-str") or "[" in part)


def _short(value: object) -> object:
    text = repr(value)
    return value if len(text) <= SHOWN else text[:SHOWN] + "…"
