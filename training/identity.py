"""The arguments of a stage as JSON: what of them makes a difference to what the stage leaves.

A field of a config says with one of two marks that it is not simply its value.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infalign.bundle import directory_digest

IMMATERIAL = "immaterial"
"""Mark of a field that decides how a stage works, not what it reaches."""
CONTENTS = "contents"
"""Mark of a path, or several: what is in the file or directory counts too; a name on the hub stands for itself."""


class Identities:
    """Makes JSON of arguments; ``root`` is where the stages are. Each file is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents = cache(_contents)

    def of(self, value: Any) -> Any:
        """``value`` as JSON; a path below the root is a stage's and names what it was made from, another is read.

        Raises:
            TypeError: a type that nothing is known of.
        """
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Path():
                inside = value.is_relative_to(self.root)
                return str(value.relative_to(self.root)) if inside else self.contents(str(value))
            case BaseModel():
                return {name: self._field(value, name) for name in value.__dict__ if not _is(value, name, IMMATERIAL)}
            case list() | tuple():
                return [self.of(item) for item in value]
            case dict():
                return {name: self.of(item) for name, item in value.items()}
            case _:
                raise TypeError(f"a stage cannot depend on a {type(value).__name__}")

    def _field(self, model: BaseModel, name: str) -> Any:
        value = getattr(model, name)
        if value is None or not _is(model, name, CONTENTS):
            return self.of(value)
        return [self.contents(path) for path in ([value] if isinstance(value, str) else value)]


def _is(model: BaseModel, name: str, mark: str) -> bool:
    return mark in type(model).model_fields[name].metadata


def _contents(path: str) -> list[str]:
    place = Path(path)
    if place.is_dir():
        return [path, directory_digest(place)]
    if place.is_file():
        with place.open("rb") as file:
            return [path, hashlib.file_digest(file, "sha256").hexdigest()]
    return [path]
