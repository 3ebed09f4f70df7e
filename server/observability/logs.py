"""The log: text or JSON lines on stderr. Each line names the request that it belongs to."""

import logging
import sys
from typing import TextIO

from server.observability.account import current_account
from server.observability.lines import RepeatFilter, TextFormatter, json_formatter
from server.settings import Settings

PROBES = {"/health", "/ready", "/metrics", "/playground"}
"""Routes whose access lines are of level debug: machines call them every few seconds, and a page loads many files."""

access_log = logging.getLogger("infalign.access")
"""Logs one line for each request."""
ACCESS_LINE = "%s %s %s"
"""Method, route and status of a request."""
text_log = logging.getLogger("infalign.text")
"""Logs prompts and selected texts, if the operator asks for them."""


def configure_logging(settings: Settings, console: TextIO | None = None) -> None:
    """Set up logging for the whole process. All libraries log through the root logger.

    Args:
        settings: The operator's settings.
        console: Where the log is written. Defaults to stderr.
    """
    handler = _Console(console or sys.stderr)
    handler.addFilter(_add_request_id)
    handler.addFilter(RepeatFilter())
    handler.setFormatter(json_formatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    text_log.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs the address of every request to another server


class _Console(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Ignore that a line cannot be written. Reporting it on stderr would fail in the same way."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _add_request_id(record: logging.LogRecord) -> bool:
    account = current_account.get()
    if account is not None and not hasattr(record, "request_id"):
        record.request_id = account.request_id
    return True


def log_refusal(status: int, request_id: str) -> None:
    """Write the access line of bytes that are not a valid request. It has no method and no route."""
    fields = {"route": "unreadable", "status": status, "request_id": request_id, "client_gone": False}
    access_log.info(ACCESS_LINE, "-", fields["route"], status, extra={"fields": fields})
