"""The fields of :class:`Settings` as options of the command line."""

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError

from infalign.validation import explain
from server.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def flag(field: str) -> str:
    """The option of a field."""
    return "--" + field.replace("_", "-")


def settings_options(command: F) -> F:
    """Give ``command`` an option for every setting; values that are left out are left to :class:`Settings`."""
    for name, field in reversed(Settings.model_fields.items()):
        shown = "" if field.default in (None, False, ()) else f" [default: {field.default}]"
        option = click.option(
            flag(name),
            envvar=f"INFALIGN_{name.upper()}",
            default=None,
            help=f"{field.description}{shown}",
            **({"is_flag": True} if field.annotation is bool else {"metavar": _kind(field.annotation)}),
        )
        command = option(command)
    return command


def _kind(annotation: Any) -> str:
    """What is written after an option in the help."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kinds[0], "TEXT")


def parse_settings(given: dict[str, str | None]) -> Settings:
    """Settings of what was given on the command line or in the environment.

    Raises:
        InvalidValue: a value that is not accepted, under the name of its option.
    """
    try:
        return Settings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise explain([{**first, "loc": (flag(str(first["loc"][0])),)}], Settings) from error
