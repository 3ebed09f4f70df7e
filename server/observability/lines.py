"""Formatting of log records. One record is one line, whatever characters it contains."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

BARE = re.compile(r"""[^\s"'=\\]+""")
"""Values that are logged without quotes."""
BURST, PERIOD = 5, 10.0
"""At most BURST lines of one kind are logged in PERIOD seconds."""
KINDS = 1024
"""The most kinds of lines that are counted at a time."""
UNLIMITED = {"infalign.access", "infalign.text"}
"""Loggers that write a line for each request."""
NUMBER = re.compile(r"\w*\d\w*")
"""Words with digits. Lines that differ only in these are of one kind."""


def escape(text: str) -> str:
    """Escape all characters of ``text`` that are not printable, as in a Python string literal.

    A text cannot break a log line or hide a part of it then.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class TextFormatter(logging.Formatter):
    r"""Formats records as text, with extra fields after the message as ``name=value``.

    A line break, for example in a traceback, is written as ``\n``.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        fields = {"request_id": getattr(record, "request_id", None)} | getattr(record, "fields", {})
        pairs = (
            f" {name}={value!r}" if isinstance(value, str) and not BARE.fullmatch(value) else f" {name}={value}"
            for name, value in fields.items()
            if value is not None
        )
        return super().formatMessage(record) + "".join(pairs)


def json_formatter() -> logging.Formatter:
    """Create a formatter for JSON lines of ASCII characters. Extra fields stand beside the message."""
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return log_data | (log_data.pop("fields", None) or {})

        def format(self, record: logging.LogRecord) -> str:
            return escape_delete(super().format(record))

    names = {"levelname": "level", "name": "logger", "exc_info": "exception"}
    return Json(
        "%(levelname)s %(name)s %(message)s",
        rename_fields=names,
        reserved_attrs=[*RESERVED_ATTRS, "vllm_process_name"],  # vLLM adds it to every record
        timestamp="time",
    )


def escape_delete(line: str) -> str:
    """Escape DEL in a line of JSON. It is the only control character that ``json.dumps`` leaves as it is."""
    return line.replace("\x7f", "\\u007f")


class RepeatFilter(logging.Filter):
    """Limits how often lines of one kind are logged.

    Of each kind, BURST lines pass in PERIOD seconds. The next line of the kind says in its field ``dropped`` how many
    lines were left out. Lines are of one kind if they differ only in numbers. Lines of the loggers in UNLIMITED always
    pass.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in UNLIMITED:
            return True
        kind = record.name, NUMBER.sub("#", record.getMessage())
        now = self._clock()
        since, count = self._counts.get(kind, (now, 0))
        drop_count = 0
        if now - since >= PERIOD:
            since, drop_count, count = now, max(0, count - BURST), 0
        if len(self._counts) >= KINDS:
            self._counts.clear()
        self._counts[kind] = since, count + 1
        if drop_count:
            record.fields = {**getattr(record, "fields", {}), "dropped": drop_count}
        return count < BURST
