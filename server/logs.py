"""The log: text or JSON lines on stderr, one line for each request, ids that follow a request."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.account import Account, current
from server.errors import CLIENT_CLOSED_REQUEST
from server.lines import Repeats, TextFormatter, json_formatter
from server.metrics import Metrics
from server.settings import Settings
from server.tracing import Tracing

REQUEST_ID = b"x-request-id"
SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
PROBES = {"/health", "/ready", "/metrics"}
"""Routes whose lines are for debugging only: machines ask every few seconds, and why one is red is logged once."""

access = logging.getLogger("infalign.access")
LINE = "%s %s %s"
"""Method, route, status."""
texts = logging.getLogger("infalign.text")


def configure(settings: Settings, console: TextIO | None = None) -> None:
    """Log to ``console``, or stderr, as the settings say. Every library logs through the root logger."""
    handler = _Console(console or sys.stderr)
    handler.addFilter(_of_request)
    handler.addFilter(Repeats())
    handler.setFormatter(json_formatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    texts.setLevel(logging.INFO)


class _Console(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """A line that the disk or the reader does not take is lost: a complaint on stderr would be one more line."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _of_request(record: logging.LogRecord) -> bool:
    account = current.get()
    if account is not None and not hasattr(record, "request_id"):
        record.request_id = account.request_id
    return True


class LogRequests:
    """Gives each request an id and an account, and writes its line when it ends.

    The id is the client's ``X-Request-Id`` if that is printable ASCII without spaces, at most 128 characters. It is in
    ``scope["request_id"]``, in every line logged on the way, and in the answer's header. Plain ASGI, around all others
    but tracing's.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.settings, self.metrics, self.tracing = app, settings, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        account = Account(_request_id(scope), self.settings.log_text)
        scope["request_id"] = account.request_id
        status, ended, gone = 0, False, False

        async def receiving() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not ended)
            return message

        async def sending(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (REQUEST_ID, account.request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), named]}
                self.tracing.describe_request(_route(scope), account)
            await send(message)
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body"))

        token = current.set(account)
        try:
            await self.app(scope, receiving, sending)
        finally:
            self._write(scope, account, status, gone or not ended or status == CLIENT_CLOSED_REQUEST)
            current.reset(token)

    def _write(self, scope: Scope, account: Account, status: int, gone: bool) -> None:
        seconds, overhead = account.seconds()
        answered = status == 200 and not gone
        if account.procedure and answered:
            self.metrics.own_overhead.labels(account.procedure.family).observe(overhead)
        route = _route(scope)
        fields: Mapping[str, Any] = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "request_id": account.request_id,
            "caller": getattr(scope.get("caller"), "name", None),
            "model": account.model,
            "procedure": str(account.procedure) if account.procedure else None,
            "n": account.n,
            "overhead_ms": round(overhead * 1000, 3) if account.procedure else None,
            "client_gone": gone,
            "trace_id": self.tracing.trace_id(),
        }
        shown = {name: value for name, value in fields.items() if value is not None}
        level = logging.DEBUG if route in PROBES else logging.INFO
        access.log(level, LINE, scope["method"], route, status, extra={"fields": shown})
        if account.selected is not None:
            written = {"prompt": account.prompt, "selected": account.selected}
            texts.info("prompt and selected text", extra={"fields": written})


def log_refusal(status: int, request_id: str) -> None:
    """Write the line of what came instead of a request, which has no method and no route."""
    fields = {"route": "unreadable", "status": status, "request_id": request_id, "client_gone": False}
    access.info(LINE, "-", fields["route"], status, extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(REQUEST_ID, b"")
    return given.decode() if SANE_ID.fullmatch(given) else uuid4().hex


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
