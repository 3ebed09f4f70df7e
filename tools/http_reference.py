"""The pages of docs/reference on the HTTP API: its endpoints, from docs/openapi.json, and its errors."""

import json
import re
from pathlib import Path

from server.errors import ServerError
from tools.markdown import Schema, cell, default, page, prose, slug, table, values

OPENAPI = Path(__file__).parents[1] / "docs" / "openapi.json"


def write_http() -> str:
    """The page of the endpoints."""
    api = json.loads(OPENAPI.read_text(encoding="utf-8"))
    calls = {f"{verb.upper()} {path}": call for path, verbs in api["paths"].items() for verb, call in verbs.items()}
    links = [(f"[`{name}`](#{slug(name)})", sentences(call)[0]) for name, call in calls.items()]
    parts = [
        "# HTTP API",
        "Bodies and answers are JSON. A running server describes its API at `/openapi.json` and has a page to try it "
        "at `/docs`; this page is made from [the same description](../openapi.json). Errors have [a page of their "
        "own](errors.md). What a key may do depends on [its roles](../guides/security.md).",
        table("endpoint, what it does", links),
        "## Endpoints",
    ]
    for name, call in calls.items():
        parts += [f"### {name}", " ".join(sentences(call)), call_table(call)]
    parts.append("## Objects")
    for name, schema in api["components"]["schemas"].items():
        parts += [f"### {name}", prose(schema.get("description")), object_table(schema)]
    return page(parts)


def sentences(call: Schema) -> list[str]:
    """What the schema says of an endpoint. A summary that only repeats the name of its function is left out."""
    summary = [] if call["summary"].istitle() else [cell(call["summary"])]
    return [*summary, *re.split(r"(?<=[.]) ", cell(call["description"]))]


def call_table(call: Schema) -> str:
    """The table of what an endpoint takes and answers."""
    rows = [(f"`{part['name']}` in the {part['in']}", values(part["schema"])) for part in call.get("parameters", ())]
    if "requestBody" in call:
        rows.append(("body", values(call["requestBody"]["content"]["application/json"]["schema"])))
    status, answer = next(iter(call["responses"].items()))
    kinds = answer.get("content", {})
    if "application/json" in kinds:
        rows.append((f"answer, {status}", values(kinds["application/json"]["schema"])))
    else:
        rows.append((f"answer, {status}", "empty" if status == "204" else "text"))
    if "text/event-stream" in kinds:
        rows.append((f"answer with `stream`, {status}", "server-sent events"))
    rows.append(("API key", "needed if the server has keys" if call.get("security") else "not needed"))
    return table("part, what it is", rows)


def object_table(schema: Schema) -> str:
    """The table of the fields of an object. Those of bodies have defaults."""
    needed, is_body = schema.get("required", ()), "additionalProperties" in schema
    rows = []
    for key, field in schema["properties"].items():
        usual = [default(field, key in needed)] if is_body else []
        rows.append((f"`{key}`", values(field), *usual, cell(description(field))))
    return table("field, value, default, meaning" if is_body else "field, value, meaning", rows)


def description(field: Schema) -> str | None:
    """What a field means. A field that may be null says so of its other value."""
    found = [part["description"] for part in (field, *field.get("anyOf", ())) if "description" in part]
    return found[0] if found else None


def write_errors() -> str:
    """The page of the errors."""
    kinds = [ServerError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    rows = [
        (str(kind.status), f"`{kind.code}`", f"`{kind.type}`", cell((kind.__doc__ or "").split("\n")[0]))
        for kind in sorted(kinds[1:], key=lambda kind: kind.status)
    ]
    form = '{"error": {"message": "...", "type": "...", "param": "...", "code": "..."}}'
    parts = [
        "# Errors",
        "Every error has the form of OpenAI's API, so OpenAI's clients understand it:",
        f"```json\n{form}\n```",
        "`message` says what the server got and what it accepts. `param` is the field of the request that is at fault, "
        "or null.",
        table("status, code, type, meaning", rows),
        "The server answers 404 `not_found` for a path that does not exist, 405 `method_not_allowed` for a method that "
        f"a path does not have, and {ServerError.status} `{ServerError.code}` if it fails itself; its log then has the "
        "reason. The header `Retry-After` of a 429 is the number of seconds to wait. A client that leaves before its "
        "answer is counted and logged as 499.",
    ]
    return page(parts)
