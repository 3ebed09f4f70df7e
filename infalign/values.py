"""Values in YAML, from files and from ``key=value`` on a command line.

It needs PyYAML, which the server and training bring.
"""

from pathlib import Path
from typing import Any

import yaml

from infalign.errors import InvalidValue, one_line


def parse_yaml(text: str, param: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: The YAML.
        param: Name of the argument or option that it comes from, for the error.
        source: What the error quotes.

    Returns:
        The value.

    Raises:
        InvalidValue: The text is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        raise InvalidValue(param, source, f"YAML ({one_line(error)})") from error


def read_yaml(path: Path, param: str) -> dict[str, Any]:
    """Read a file that holds a YAML mapping.

    Args:
        path: The file, in UTF-8.
        param: Name of the argument or option that names the file, for the error.

    Returns:
        The mapping.

    Raises:
        InvalidValue: The file cannot be read, is not YAML, or holds something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(param, str(path), f"YAML in UTF-8 ({one_line(error)})") from error
    values = parse_yaml(text, param, str(path))
    if not isinstance(values, dict):
        raise InvalidValue(param, str(path), "a YAML mapping")
    return values


def parse_assignment(text: str, param: str, example: str) -> tuple[str, Any]:
    """Parse ``key=value``, where the value is YAML.

    Args:
        text: The assignment.
        param: Name of the option that it comes from, for the error.
        example: An assignment that would be accepted, for the error.

    Returns:
        The key and the value.

    Raises:
        InvalidValue: There is no ``=``, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise InvalidValue(param, text, f"key=value, such as {example}")
    return key.strip(), parse_yaml(value, param, text)
