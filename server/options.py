"""The fields of :class:`server.settings.Settings` as command-line options."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError

from infalign.validation import explain
from server.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def option_name(field: str) -> str:
    """Return the command-line option of a settings field, such as ``--max-n`` for ``max_n``."""
    return "--" + field.replace("_", "-")


class Whole(click.types.StringParamType):
    """A text that may be given several times, but as an environment variable only once: it is not split at spaces."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the value of the environment variable as the only part."""
        return [rv]


def settings_options(command: F) -> F:
    """Add an option for every setting to a click command.

    The options have no defaults, so that :class:`Settings` supplies them.
    """
    for name, field in reversed(Settings.model_fields.items()):
        default_text = "" if field.default in (None, False, (), {}) else f" [default: {field.default}]"
        option = click.option(
            option_name(name),
            envvar=f"INFALIGN_{name.upper()}",
            default=None,
            help=f"{field.description}{default_text}",
            **_form(field.annotation),
        )
        command = option(command)
    return command


def _form(annotation: Any) -> dict[str, Any]:
    """Arguments of click for an option of a type."""
    if annotation is bool:
        return {"is_flag": True}
    if get_origin(annotation) is Mapping:
        return {"multiple": True, "type": Whole(), "metavar": "KEY=VALUE"}
    if get_origin(annotation) is tuple:
        return {"multiple": True, "type": Whole(), "metavar": "TEXT"}
    return {"metavar": _metavar(annotation)}


def _metavar(annotation: Any) -> str:
    """The placeholder for the value in the help text."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    types = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(types[0], "TEXT")


def parse_settings(values: Mapping[str, str | tuple[str, ...] | None]) -> Settings:
    """Build the settings from the values of the command line and the environment.

    Args:
        values: Option values by field name. None, or an empty tuple, means the option was not given.

    Raises:
        InvalidValue: A value is not accepted. The error names the option.
    """
    try:
        return Settings.model_validate({name: value for name, value in values.items() if value not in (None, ())})
    except ValidationError as error:
        first = error.errors()[0]
        raise explain([{**first, "loc": (option_name(str(first["loc"][0])),)}], Settings) from error
