"""One line for values that pydantic refused: the field, what came, what is accepted."""

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from infalign.errors import InvalidValue

ErrorDetails = Mapping[str, Any]
"""One of ``ValidationError.errors()``."""
SHOWN = 80
"""Characters of a value, or of a name, that an error repeats."""
NEAR = 0.75
"""How similar a known key must be to be suggested for an unknown one, from 0 to 1."""
UNION_TAG = re.compile(r"(constrained-)?(str|int|float)|bool|[a-z-]*\[.*\]", re.DOTALL)
"""What pydantic puts into a location for a branch of a union (``list[...]``) or for a key (``[key]``)."""
PREAMBLE = re.compile(r"^Value error, |^[A-Z][a-z]+ should (be|have) ")
"""How pydantic's messages begin; what follows says what is accepted."""


def explain(
    errors: Sequence[ErrorDetails], model: type[BaseModel], show: Callable[[ErrorDetails], object] | None = None
) -> InvalidValue:
    """The error that says most, as our own, with the nearest known key for one that is unknown.

    Args:
        errors: of ``ValidationError.errors()``, at least one.
        model: what was validated; keys are looked up in it.
        show: what is written of the value of an error; the start of it by default.
    """
    error, *others = _foremost(errors)
    path = _path(error)
    field = ".".join(beginning(str(part)) for part in path) or "body"
    if error["type"] == "missing":
        return InvalidValue(field, None, "this field is required")
    value = show(error) if show else _value(error)
    if error["type"] == "extra_forbidden":
        return InvalidValue(field, value, _nearest(path, model))
    accepted = dict.fromkeys(_accepted(one) for one in (error, *others))
    return InvalidValue(field, value, " or ".join(accepted))


def beginning(text: str) -> str:
    """The start of ``text``, where it is long."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _foremost(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The error to report; several where a value fits no branch of a union, one for each.

    An unknown key comes first and a missing one last, since one often follows from the other.
    """
    first = min(errors, key=lambda error: {"extra_forbidden": 0, "missing": 2}.get(error["type"], 1))
    union = next((i for i, part in enumerate(first["loc"]) if _is_union_tag(part)), None)
    if union is None or first["type"] == "extra_forbidden":
        return [first]
    of_union = [error for error in errors if error["loc"][:union] == first["loc"][:union]]
    # Of the branches, one in which validation came further than to the type.
    fits = max(of_union, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))
    return of_union if fits["type"].endswith("_type") and len(fits["loc"]) == union + 1 else [fits]


def _path(error: ErrorDetails) -> list[Any]:
    """Where a value was, as a user would write it."""
    *parts, last = error["loc"] or ("body",)
    kept = [part for part in parts if part != "body" and not _is_union_tag(part)]
    if error["type"] == "extra_forbidden":  # the name is the user's own, and may look like anything
        return [*kept, last]
    return kept if last == "body" or _is_union_tag(last) else [*kept, last]


def _is_union_tag(part: object) -> bool:
    return isinstance(part, str) and UNION_TAG.fullmatch(part) is not None


def _accepted(error: ErrorDetails) -> str:
    return PREAMBLE.sub("", str(error["msg"]), count=1).replace(" after validation", "")


def _value(error: ErrorDetails) -> object:
    given = error.get("input")
    text = repr(given)
    return given if len(text) <= SHOWN else beginning(text)


def _nearest(path: Sequence[Any], model: type[BaseModel]) -> str:
    owner = next(_models(_annotation(path[:-1], model)), None)
    fields = owner.model_fields.items() if owner else ()
    # A field that is not kept is read for the sake of others' habits; nobody is sent to it.
    known = [field.alias or name for name, field in fields if not field.exclude]
    near = get_close_matches(str(path[-1]), known, n=1, cutoff=NEAR)
    return f"no such key; did you mean {near[0]}?" if near else f"no such key; known: {', '.join(known)}"


def _annotation(path: Sequence[Any], model: type[BaseModel]) -> Any:
    """The type at a place in ``model``; None where it has no such place."""
    annotation: Any = model
    for part in path:
        annotation = next((inner for branch in _branches(annotation) for inner in _within(branch, part)), None)
    return annotation


def _within(annotation: Any, part: object) -> Iterator[Any]:
    """The type of what a value of ``annotation`` has under ``part``, if that is a key or place of it."""
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
