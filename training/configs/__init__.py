"""Reads a config: one that is shipped, by its name, or any YAML file. The command line can override its keys."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infalign.errors import InvalidValue
from infalign.validation import explain
from infalign.values import parse_assignment, read_yaml
from training.config import FILES, Config

SHIPPED = Path(__file__).parent
"""Folder of the shipped configs."""


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
    path = Path(name_or_path)
    if not path.suffix:
        path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise InvalidValue("CONFIG", name_or_path, f"a YAML file, or a shipped config: {names}")
    return make_config(read_yaml(path, "CONFIG"), overrides, paths)


def make_config(values: dict[str, Any], overrides: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> Config:
    """Make a config.

    Args:
        values: Sections and keys, as in a YAML file. They are changed.
        overrides: Values as ``key=value``, such as ``ctrl.target_kl=1``.
        paths: Data files in place of those in the config.

    Raises:
        InvalidValue: A key is unknown (the message names the nearest one), or a value is not accepted.
    """
    for override in overrides:
        _apply_override(values, override)
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


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, value = parse_assignment(override, "--set", "ctrl.target_kl=1")
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidValue("--set", override, f"a key below a section; {section} is a value")
    values[leaf] = value
