"""Prompts of a file, with what else its rows say about them."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue, shorten
from workbench.rows import read_rows

COLUMNS = ("messages", "prompt", "chosen")
"""Columns that prompts are looked for in, unless the user names one. ``chosen`` is a transcript of HH-RLHF."""
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LISTED_ROWS = 5
"""Row numbers that a note lists at most."""
Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What is sent to the model, and what else is known about it."""

    messages: tuple[Message, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    """The other columns of its row whose values are texts, numbers, truth values, or lists of these."""

    @property
    def id(self) -> str:
        """16 hexadecimal digits that depend on the messages alone, so that two campaigns can be compared."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:16]

    @property
    def json(self) -> str:
        """The messages as JSON, always written in the same way."""
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @property
    def text(self) -> str:
        """The text of a single user message; the messages as JSON if there are others."""
        first = self.messages[0]
        is_text = len(self.messages) == 1 and first.keys() == {"role", "content"} and first["role"] == "user"
        return first["content"] if is_text and isinstance(first["content"], str) else self.json

    def replace_last(self, text: str) -> tuple[Message, ...]:
        """Return the messages with another text in the last one."""
        return (*self.messages[:-1], {**self.messages[-1], "content": text})

    @property
    def last_text(self) -> str:
        """The text of the last message; empty if its content is not a text."""
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else ""


Response = tuple[str, Mapping[str, str]]
"""Text and tags of a response."""


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file."""

    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()
    """What was left out, for the user to read."""
    responses: Mapping[str, Sequence[Response]] = field(default_factory=dict)
    """Responses that the file has, by the id of their prompt."""

    @property
    def digest(self) -> str:
        """SHA-256 of the ids of all prompts, and of the responses."""
        content = [[prompt.id, [text for text, _ in self.responses.get(prompt.id, ())]] for prompt in self.prompts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_prompts(
    path: Path, column: str | None = None, limit: int | None = None, responses: str | None = None
) -> PromptFile:
    """Read the prompts of a file. Empty prompts are left out, and a prompt that occurs again is taken once.

    Args:
        path: A file of :func:`workbench.rows.read_rows`.
        column: Column with the prompts; by default the first of ``messages``, ``prompt`` and ``chosen`` that there is.
        limit: Take only so many prompts.
        responses: Column with responses. Each row of a prompt has one then.

    Returns:
        The prompts, and notes on what was left out.

    Raises:
        InvalidValue: The file cannot be read, has no such column, or has no prompt.
    """
    prompts: dict[str, Prompt] = {}
    answers: defaultdict[str, list[Response]] = defaultdict(list)
    left_out: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in read_rows(path, "PROMPTS"):
        prompt = _read_prompt(path, number, row, column)
        if not any(map(_is_said, prompt.messages)):
            left_out["empty prompt"].append(number)
            continue
        is_new = prompt.id not in prompts
        if is_new and limit is not None and len(prompts) >= limit:
            if responses:
                continue  # later rows may have further responses to prompts that are taken
            break
        prompts.setdefault(prompt.id, prompt)
        if responses:
            text = _find(path, number, row, "--responses", responses)
            if isinstance(text, str) and text.strip():
                answers[prompt.id].append((text, {k: v for k, v in prompt.tags.items() if k != responses}))
            else:
                left_out["empty response"].append(number)
        elif not is_new:
            left_out["prompt that occurs before"].append(number)
    _check_some(path, prompts)
    notes = (f"{path.name}: left out {_list(rows)}: {reason}" for reason, rows in left_out.items())
    return PromptFile(tuple(prompts.values()), tuple(notes), answers)


def read_all_prompts(path: Path, column: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Read one prompt for each row of a file, repeated and empty ones too.

    Args:
        path: A file of :func:`workbench.rows.read_rows`.
        column: Column with the prompts; by default the first of ``messages``, ``prompt`` and ``chosen`` that there is.
        limit: Take only so many rows.

    Raises:
        InvalidValue: The file cannot be read, has no such column, or has no row.
    """
    rows = islice(read_rows(path, "PROMPTS"), limit)
    prompts = [_read_prompt(path, number, row, column) for number, row in rows]
    _check_some(path, prompts)
    return prompts


def _check_some(path: Path, prompts: Collection[object]) -> None:
    if not prompts:
        raise InvalidValue("PROMPTS", str(path), "a file with at least one prompt")


def parse_messages(value: Any) -> list[Message] | None:
    """Read a prompt: a text, messages, messages as JSON, or a transcript of HH-RLHF without its last response.

    Args:
        value: What the file has.

    Returns:
        The messages, or None if it is none of these. An empty text is one empty message.
    """
    if value is None:
        return [{"role": "user", "content": ""}]
    if isinstance(value, str):
        if TURN.match(value):
            return _parse_transcript(value)
        listed = _parse_list(value)
        return [{"role": "user", "content": value}] if listed is None else listed
    is_chat = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    return value if is_chat else None


def _parse_list(text: str) -> list[Message] | None:
    """Parse messages that a table holds as JSON."""
    if not text.lstrip().startswith('[{"'):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if all(isinstance(m, dict) and "role" in m for m in value) else None


def _parse_transcript(text: str) -> list[Message]:
    """Read turns of "Human:" and "Assistant:", each after an empty line. A last turn of the assistant is left out."""
    parts = TURN.split(text)
    turns = [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return list(turns) or [{"role": "user", "content": ""}]


def _read_prompt(path: Path, number: int, row: Any, column: str | None) -> Prompt:
    """Read the prompt and the tags of a row."""
    value, tags = row, {}
    if isinstance(row, Mapping) or column:
        name = column or next((name for name in COLUMNS if isinstance(row, Mapping) and name in row), None)
        value = _find(path, number, row, "--column", name)
        others = {key: value for key, value in row.items() if key not in (*COLUMNS, name, "rejected")}
        tags = {str(key): text for key, value in others.items() if (text := _write_tag(value)) is not None}
    messages = parse_messages(value)
    if messages is None:
        wanted = f"in row {number} a prompt, as text or as messages; it has {shorten(value, 80)}"
        raise InvalidValue("PROMPTS", str(path), wanted)
    prompt = Prompt(tuple(messages), tags)
    try:
        "".join((prompt.json, *tags, *tags.values())).encode()
    except UnicodeEncodeError as error:
        wanted = f"text in row {number} that is Unicode; it has {error.object[error.start]!r}, half of a character"
        raise InvalidValue("PROMPTS", str(path), wanted) from error
    return prompt


def _find(path: Path, number: int, row: Any, option: str, name: str | None) -> Any:
    """Take the value of a column out of a row."""
    if not isinstance(row, Mapping):
        raise InvalidValue(option, name, f"nothing for row {number} of {path.name}, which has no columns")
    if name not in row:
        raise InvalidValue(option, name, f"a column of row {number} of {path.name}: {', '.join(map(str, row))}")
    return row[name]


def _write_tag(value: Any) -> str | None:
    """Write a tag: a text, a number, a truth value, or a list of these. Others are no tags."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    parts = [_write_tag(part) for part in value] if isinstance(value, list) else [None]
    return None if None in parts else ", ".join(map(str, parts))


def _is_said(message: Message) -> bool:
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content)


def _list(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"{len(rows)} rows ({', '.join(map(str, rows[:LISTED_ROWS]))}{', …' if len(rows) > LISTED_ROWS else ''})"
