"""One-line messages for values that pydantic refuses: the field, the value, and what is accepted."""

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from infalign.errors import InvalidValue, truncate

ErrorDetails = Mapping[str, Any]
"""One of ``ValidationError.errors()``."""
LIMIT = 80
"""Characters of a value, or of a name, that a message repeats."""
NEAR = 0.75
"""How similar a key of the model must be, from 0 to 1, to be suggested for an unknown one."""
UNION_TAG = re.compile(r"(constrained-)?(str|int|float)|bool|[a-z-]*\[.*\]", re.DOTALL)
"""The parts of a location that stand for a branch of a union (``list[...]``) or for a key (``[key]``)."""
PREAMBLE = re.compile(r"^Value error, |^[A-Z][a-z]+ should (be|have) ")
"""The start of pydantic's messages, before they say what is accepted."""


def explain(
    errors: Sequence[ErrorDetails], model: type[BaseModel], show: Callable[[ErrorDetails], object] | None = None
) -> InvalidValue:
    """Turn the most telling of pydantic's errors into one of ours.

    For an unknown key, the message suggests the nearest key of the model.

    Args:
        errors: Result of ``ValidationError.errors()``, at least one error.
        model: The class that was validated, for the names of its keys.
        show: Function from an error to what the message says of its value; the start of the value by default.

    Returns:
        The error, for the caller to raise.
    """
    error, *others = _foremost(errors) if show else map(_blame, _foremost(errors))
    path = _path(error)
    field = ".".join(truncate(str(part), LIMIT) for part in path) or "body"
    if error["type"] == "missing":
        return InvalidValue(field, None, "this field is required")
    value = show(error) if show else _value(error)
    if error["type"] == "extra_forbidden":
        return InvalidValue(field, value, _nearest(path, model))
    requirements = dict.fromkeys(_requirement(one) for one in (error, *others))
    return InvalidValue(field, value, " or ".join(requirements))


def _foremost(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Select the error to report, or one error for each branch of a union if the value fits none.

    An unknown key comes first and a missing one last, since one often follows from the other.
    """
    first = min(errors, key=lambda error: {"extra_forbidden": 0, "missing": 2}.get(error["type"], 1))
    union = next((i for i, part in enumerate(first["loc"]) if _is_union_tag(part)), None)
    if union is None or first["type"] == "extra_forbidden":
        return [first]
    of_union = [error for error in errors if error["loc"][:union] == first["loc"][:union]]
    # Prefer a branch in which validation came further than to the type.
    fits = max(of_union, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))
    return of_union if fits["type"].endswith("_type") and len(fits["loc"]) == union + 1 else [fits]


def _blame(error: ErrorDetails) -> ErrorDetails:
    """Blame the keys of a section that a message about the whole section speaks of, and not all that it contains."""
    section = error.get("input")
    if error["type"] != "value_error" or not isinstance(section, dict):
        return error
    given = {key: value for key, value in section.items() if value is not None}
    keys = [key for key in given if re.search(rf"(?<![\w.]){re.escape(str(key))}(?![\w.])", str(error["msg"]))]
    if len(keys) == 1:
        return {**error, "loc": (*error["loc"], keys[0]), "input": section[keys[0]]}
    return {**error, "input": {key: section[key] for key in keys}} if keys else error


def _path(error: ErrorDetails) -> list[Any]:
    """Write the place of a value as a user would."""
    *parts, last = error["loc"] or ("body",)
    path = [part for part in parts if part != "body" and not _is_union_tag(part)]
    if error["type"] == "extra_forbidden":  # the name is the user's own, and may look like anything
        return [*path, last]
    return path if last == "body" or _is_union_tag(last) else [*path, last]


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and UNION_TAG.fullmatch(part) is not None


def _requirement(error: ErrorDetails) -> str:
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InvalidValue):  # its message names a field and the value once more
        return cause.requirement
    return PREAMBLE.sub("", str(error["msg"]), count=1).replace(" after validation", "")


def _value(error: ErrorDetails) -> object:
    value = error.get("input")
    text = repr(value)
    return value if len(text) <= LIMIT else truncate(text, LIMIT)


def _nearest(path: Sequence[Any], model: type[BaseModel]) -> str:
    owner = next(_models(_annotation(path[:-1], model)), None)
    fields = owner.model_fields.items() if owner else ()
    # An excluded field is accepted only for clients that send it out of habit, so it is not suggested.
    names = [field.alias or name for name, field in fields if not field.exclude]
    near = get_close_matches(str(path[-1]), names, n=1, cutoff=NEAR)
    return f"no such key; did you mean {near[0]}?" if near else f"no such key; known: {', '.join(names)}"


def _annotation(path: Sequence[Any], model: type[BaseModel]) -> Any:
    """Get the type at a place in ``model``, or None if it has no such place."""
    annotation: Any = model
    for part in path:
        annotation = next((inner for branch in _branches(annotation) for inner in _within(branch, part)), None)
    return annotation


def _within(annotation: Any, part: object) -> Iterator[Any]:
    """Yield the type of the item ``part`` of a value of type ``annotation``, if it has one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from (
            field.annotation for name, field in annotation.model_fields.items() if part == (field.alias or name)
        )
    elif get_origin(annotation) in (list, tuple) and isinstance(part, int):
        yield get_args(annotation)[0]
    elif get_origin(annotation) in (dict, Mapping):
        yield get_args(annotation)[1]


def _branches(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _branches(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for branch in get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for branch in _branches(annotation):
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            yield branch
