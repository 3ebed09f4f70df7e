"""Puts docstrings, help texts and JSON schemas into Markdown."""

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Schema = Mapping[str, Any]

LARGE = {2**31 - 1: "2³¹ − 1", 2**62: "2⁶²"}
TYPES = {"boolean": "true or false", "string": "text", "null": "null"}
"""Words for the types of JSON, where they differ from its own."""


def page(parts: Iterable[str]) -> str:
    """Join the parts of a page."""
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Format a table. Commas separate the names of the columns."""
    columns = head.split(", ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


def prose(text: str | None) -> str:
    """Turn a docstring or help text into Markdown, one line for each paragraph."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text or "").replace("``", "`").replace("->", "→")
    paragraphs = [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n")]
    return re.sub(r"\*(?=[\s,.;]|$)", r"\\*", "\n\n".join(paragraphs))


def cell(text: str | None) -> str:
    """Turn a docstring or help text into the content of a cell, with a capital letter and a full stop."""
    line = " ".join(prose(text).split())
    if re.match("[a-z]+(-[a-z]+)* ", line):
        line = line[0].upper() + line[1:]
    return line if not line or line.endswith(".") else f"{line}."


def take_notes(text: str) -> tuple[str, list[str]]:
    """Split a help text into the text itself and the notes in brackets that follow it, such as ``default: 8``."""
    found = re.search(r"(?:\s*\[[^\]]*\])+\.?$", text)
    if not found:
        return text, []
    notes = re.findall(r"\[([^\]]*)\]", found[0])
    return text[: found.start()], [note for part in notes for note in re.split(r"; (?=\S*\bx[<>])", part)]


def default(schema: Schema, required: bool) -> str:
    """Format the default of a field."""
    if required:
        return "required"
    value = schema.get("default")
    if value is None or value in ("", (), [], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def values(schema: Schema) -> str:
    """Say in words which values a schema accepts. An object of its own is a link to its section."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        parts = list(dict.fromkeys(values(part) for part in schema["anyOf"] if part.get("type") != "null"))
        return (", or " if ", " in "".join(parts) else " or ").join(parts)
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return ", ".join(_literal(value) for value in schema["enum"])
    inner = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
    if schema.get("type") == "array":
        text = f"list of {_inner(schema.get('items', {}))}"
    elif schema.get("type") == "object" and isinstance(inner, Mapping):
        text = f"object of {_inner(inner)}"
    elif schema.get("format") == "path":
        text = "path"
    else:
        kind: str = schema.get("type", "anything")
        text = TYPES.get(kind, kind)
    return text + _bounds(schema)


def _inner(schema: Schema) -> str:
    kind, comma, limits = values(schema).partition(", ")
    return f"{kind} ({limits})" if comma and "`" not in limits else kind + comma + limits


def _literal(value: Any) -> str:
    return f"`{value if value and isinstance(value, str) else json.dumps(value)}`"


def _bounds(schema: Schema) -> str:
    """Say in words between which bounds a value, a length or a count is."""
    kinds = {"Length": " characters", "Items": " entries", "Properties": " entries", "imum": ""}
    low, high, above = None, None, schema.get("exclusiveMinimum")
    unit = ""
    for kind, name in kinds.items():
        if f"min{kind}" in schema or f"max{kind}" in schema:
            low, high, unit = schema.get(f"min{kind}"), schema.get(f"max{kind}"), name
    if unit and low == 1 and high in (None, 1):
        return ", exactly 1" if high else ", not empty"
    parts = []
    if above is not None:
        parts.append(f"above {_number(above)}")
    elif low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}{unit}"
    elif low is not None:
        parts.append(f"at least {_number(low)}{unit}")
    if high is not None:
        parts.append(f"at most {_number(high)}{unit}")
    if "multipleOf" in schema:
        parts.append(f"a multiple of {_number(schema['multipleOf'])}")
    return "".join(f", {part}" for part in parts)


def _number(value: float) -> str:
    return LARGE.get(int(value), f"{value:,.10g}").replace("-", "−")
