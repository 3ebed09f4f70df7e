"""Describes the inputs of a stage as JSON, so that a stage can be named by a hash of what it is made from.

Only what makes a difference to the result is part of the description. A field of a config carries one of two marks
where it needs special treatment.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infalign.files import directory_digest

IMMATERIAL = "immaterial"
"""Mark of a field that decides how a stage works but not what it produces. It is left out."""
CONTENTS = "contents"
"""Mark of a field with a path, or several. The contents of the files count too; an id on the hub is its own name."""


class Identities:
    """Describes values as JSON. The contents of each file are read once.

    Args:
        root: Directory of the run, which holds the directories of the stages.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents = cache(_digest_contents)

    def encode(self, value: Any) -> Any:
        """Describe a value as JSON.

        A path below the root belongs to a stage. Its name already says what it was made from, so it is not read. Any
        other path is described by its contents.

        Args:
            value: A value, path, config, or a list or dictionary of them.

        Returns:
            A value that JSON can represent. Equal values have equal descriptions.

        Raises:
            TypeError: The value has a type that cannot be described.
        """
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Path():
                inside = value.is_relative_to(self.root)
                return str(value.relative_to(self.root)) if inside else self.contents(str(value))
            case BaseModel():
                return {
                    name: self._field(value, name) for name in value.__dict__ if not _has_mark(value, name, IMMATERIAL)
                }
            case list() | tuple():
                return [self.encode(item) for item in value]
            case dict():
                return {name: self.encode(item) for name, item in value.items()}
            case _:
                raise TypeError(f"a stage cannot depend on a {type(value).__name__}")

    def _field(self, model: BaseModel, name: str) -> Any:
        value = getattr(model, name)
        if value is None or not _has_mark(model, name, CONTENTS):
            return self.encode(value)
        return [self.contents(path) for path in ([value] if isinstance(value, str) else value)]


def _has_mark(model: BaseModel, name: str, mark: str) -> bool:
    return mark in type(model).model_fields[name].metadata


def _digest_contents(path: str) -> list[str]:
    file = Path(path)
    if file.is_dir():
        return [path, directory_digest(file)]
    if file.is_file():
        with file.open("rb") as stream:
            return [path, hashlib.file_digest(stream, "sha256").hexdigest()]
    return [path]
