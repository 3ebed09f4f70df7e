"""The arguments of a stage as JSON: what of them makes a difference to what the stage leaves.

A field of a config says with one of two marks that it is not simply its value.
"""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infalign.bundle import directory_digest

IMMATERIAL = "immaterial"
"""Mark of a field that decides how a stage works, not what it reaches."""
CONTENTS = "contents"
"""Mark of a path, or several: what is in the file or directory counts too; a name on the hub stands for itself."""


def identity(value: Any, root: Path) -> Any:
    """``value`` as JSON; a path below ``root`` is a stage's and names what it was made from, another is read.

    Raises:
        TypeError: a type that nothing is known of.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value.relative_to(root)) if value.is_relative_to(root) else _contents(str(value))
        case BaseModel():
            return {name: _field(value, name, root) for name in value.__dict__ if not _is(value, name, IMMATERIAL)}
        case list() | tuple():
            return [identity(item, root) for item in value]
        case dict():
            return {name: identity(item, root) for name, item in value.items()}
        case _:
            raise TypeError(f"a stage cannot depend on a {type(value).__name__}")


def _is(model: BaseModel, name: str, mark: str) -> bool:
    return mark in type(model).model_fields[name].metadata


def _field(model: BaseModel, name: str, root: Path) -> Any:
    value = getattr(model, name)
    if not _is(model, name, CONTENTS) or value is None:
        return identity(value, root)
    return [_contents(path) for path in ([value] if isinstance(value, str) else value)]


def _contents(path: str) -> list[str]:
    place = Path(path)
    if place.is_dir():
        return [path, directory_digest(place)]
    if place.is_file():
        with place.open("rb") as file:
            return [path, hashlib.file_digest(file, "sha256").hexdigest()]
    return [path]
