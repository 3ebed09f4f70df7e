"""The log: text or JSON lines on stderr, one line for each request, ids that follow a request."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.account import Account, current
from server.errors import CLIENT_CLOSED_REQUEST
from server.metrics import Metrics
from server.settings import Settings
from server.tracing import Tracing

REQUEST_ID = b"x-request-id"
SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
PROBES = {"/health", "/ready", "/metrics"}
"""Routes whose lines are for debugging only: machines ask every few seconds, and why one is red is logged once."""

access = logging.getLogger("infalign.access")
texts = logging.getLogger("infalign.text")


def configure(settings: Settings) -> None:
    """Log to stderr as the settings say. Every library logs through the root logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_of_request)
    handler.setFormatter(_json() if settings.log_format == "json" else _Text())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    texts.setLevel(logging.INFO)


def _of_request(record: logging.LogRecord) -> bool:
    account = current.get()
    if account is not None and not hasattr(record, "request_id"):
        record.request_id = account.request_id
    return True


class _Text(logging.Formatter):
    """Fields behind the message, as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        fields = {"request_id": getattr(record, "request_id", None)} | getattr(record, "fields", {})
        shown = (
            f" {name}={value!r}" if isinstance(value, str) and " " in value else f" {name}={value}"
            for name, value in fields.items()
            if value is not None
        )
        return super().formatMessage(record) + "".join(shown)


def _json() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return log_data | (log_data.pop("fields", None) or {})

    names = {"levelname": "level", "name": "logger", "exc_info": "exception"}
    return Json(
        "%(levelname)s %(name)s %(message)s",
        rename_fields=names,
        reserved_attrs=[*RESERVED_ATTRS, "vllm_process_name"],  # which vLLM adds to every line
        timestamp="time",
        json_ensure_ascii=False,
    )


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
        access.log(level, "%s %s %s", scope["method"], route, status, extra={"fields": shown})
        if account.selected is not None:
            written = {"prompt": account.prompt, "selected": account.selected}
            texts.info("prompt and selected text", extra={"fields": written})


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(REQUEST_ID, b"")
    return given.decode() if SANE_ID.fullmatch(given) else uuid4().hex


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
