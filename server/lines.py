"""Log records as lines: one record is one line, whatever it holds."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

BARE = re.compile(r"""[^\s"'=\\]+""")
"""Values that need no quotes."""
BURST, PERIOD = 5, 10.0
"""Lines of a kind that are logged in so many seconds."""
KINDS = 1024
"""Kinds of lines that are counted at a time."""
UNLIMITED = {"infalign.access", "infalign.text"}
"""Loggers with a line for each request."""
NUMBER = re.compile(r"\w*\d\w*")


def escape(text: str) -> str:
    """``text`` with all that is not printable escaped as in a Python string: no character breaks or hides a line."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class TextFormatter(logging.Formatter):
    r"""Fields behind the message, as ``name=value``. A line break, as in a traceback, is shown as ``\n``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        fields = {"request_id": getattr(record, "request_id", None)} | getattr(record, "fields", {})
        shown = (
            f" {name}={value!r}" if isinstance(value, str) and not BARE.fullmatch(value) else f" {name}={value}"
            for name, value in fields.items()
            if value is not None
        )
        return super().formatMessage(record) + "".join(shown)


def json_formatter() -> logging.Formatter:
    """Fields beside the message, in one JSON object of ASCII characters."""
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return log_data | (log_data.pop("fields", None) or {})

        def format(self, record: logging.LogRecord) -> str:
            return ascii_json(super().format(record))

    names = {"levelname": "level", "name": "logger", "exc_info": "exception"}
    return Json(
        "%(levelname)s %(name)s %(message)s",
        rename_fields=names,
        reserved_attrs=[*RESERVED_ATTRS, "vllm_process_name"],  # which vLLM adds to every line
        timestamp="time",
    )


def ascii_json(line: str) -> str:
    """A line of ``json.dumps`` with the only control character escaped that it leaves: DEL."""
    return line.replace("\x7f", "\\u007f")


class Repeats(logging.Filter):
    """Lets BURST lines of a kind through in PERIOD seconds; the next one says in ``dropped`` how many were not.

    Lines are of a kind if they differ in numbers alone. The lines of requests are not limited.
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
        dropped = 0
        if now - since >= PERIOD:
            since, dropped, count = now, max(0, count - BURST), 0
        if len(self._counts) >= KINDS:
            self._counts.clear()
        self._counts[kind] = since, count + 1
        if dropped:
            record.fields = {**getattr(record, "fields", {}), "dropped": dropped}
        return count < BURST
