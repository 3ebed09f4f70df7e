"""Reads a config: one that is shipped, by its name, or any YAML file. The command line can override its keys."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from infalign.errors import InvalidValue
from infalign.validation import explain
from infalign.values import parse_assignment, read_yaml
from training.config import FILES, Config

SHIPPED = Path(__file__).parent
"""Folder of the shipped configs."""
ADAPTER = "adapter"
"""The shipped config whose models and data the command line names."""


def load_config(name_or_path: str, overrides: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> Config:
    """Load a config.

    Args:
        name_or_path: Name of a shipped config, such as ``demo``, or the path of a YAML file.
        overrides: Values as ``key=value``, such as ``ctrl.target_kl=1``.
        paths: Data files in place of those in the config.

    Raises:
        InvalidValue: There is no such config, a key is unknown (the message names the nearest one), or a value is not
            accepted.
    """
    return make_config(read_config(name_or_path), overrides, paths)


def read_config(name_or_path: str) -> dict[str, Any]:
    """Read the sections and keys of a config, which may be incomplete.

    Args:
        name_or_path: Name of a shipped config, such as ``demo``, or the path of a YAML file.

    Raises:
        InvalidValue: There is no such config, or it is not a YAML mapping.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise InvalidValue("CONFIG", name_or_path, f"a YAML file, or a shipped config: {names}")
    return read_yaml(path, "CONFIG")


def make_config(
    values: dict[str, Any],
    overrides: tuple[str, ...] = (),
    paths: tuple[str, ...] = (),
    keys: Mapping[str, Any] = MappingProxyType({}),
) -> Config:
    """Make a config.

    Args:
        values: Sections and keys, as in a YAML file. They are changed.
        overrides: Values as ``key=value``, such as ``ctrl.target_kl=1``.
        paths: Data files in place of those in the config.
        keys: Values by dotted keys. They replace ``values``, and ``overrides`` replace them.

    Raises:
        InvalidValue: A key is unknown (the message names the nearest one), or a value is not accepted.
    """
    for key, value in keys.items():
        _set_key(values, key, value, key, value)
    for override in overrides:
        _set_key(values, *parse_assignment(override, "--set", "ctrl.target_kl=1"), "--set", override)
    if paths:
        _replace_files(values, paths)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # What is wrong with the config as a whole is said of its name, not of all that it contains.
        whole = {"loc": ("config",), "input": values.get("name")}
        errors = [detail if detail["loc"] else {**detail, **whole} for detail in error.errors()]
        raise explain(errors, Config) from error


def _replace_files(values: dict[str, Any], paths: tuple[str, ...]) -> None:
    data = values.get("data")
    for kind in FILES:
        if isinstance(data, dict) and isinstance(files := data.get(kind), dict):
            files.update(paths=[str(Path(path).absolute()) for path in paths], hub=None)
            return
    raise InvalidValue("--data", ", ".join(paths), "no files: this config's data is generated")


def _set_key(values: dict[str, Any], key: str, value: Any, source: str, given: Any) -> None:
    """Set a dotted key. The error blames ``source`` and quotes what was ``given``."""
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidValue(source, given, f"a key below a section; {section} is a value")
    values[leaf] = value
