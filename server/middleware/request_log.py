"""Gives each request an id and an account, and logs it when it ends."""

import logging
import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_CLOSED_REQUEST
from server.observability.account import Account, current_account
from server.observability.logs import ACCESS_LINE, PROBES, access_log, text_log
from server.observability.metrics import Metrics
from server.observability.tracing import Tracing
from server.settings import Settings

REQUEST_ID = b"x-request-id"
SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
"""Request ids of clients that are accepted."""


class RequestLogMiddleware:
    """ASGI middleware that gives each request an id and an account, and writes its access line when it ends.

    The id is the client's ``X-Request-Id`` if that is printable ASCII without spaces, at most 128 characters long.
    Otherwise a new one is made. It is in ``scope["request_id"]``, in every log line of the request, and in the answer's
    header. This middleware wraps all others except tracing.

    Args:
        app: The application that it wraps.
        settings: The operator's settings.
        metrics: Observes the server's own overhead.
        tracing: Gets a description of each request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, tracing: Tracing) -> None:
        self.app, self.settings, self.metrics, self.tracing = app, settings, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        account = Account(_request_id(scope), self.settings.log_text)
        scope["request_id"] = account.request_id
        status, complete, is_disconnected = 0, False, False

        async def receive_wrapper() -> Message:
            nonlocal is_disconnected
            message = await receive()
            is_disconnected = is_disconnected or (message["type"] == "http.disconnect" and not complete)
            return message

        async def send_wrapper(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (REQUEST_ID, account.request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
                self.tracing.describe_request(_route(scope), account)
            await send(message)
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body"))

        token = current_account.set(account)
        try:
            await self.app(scope, receive_wrapper, send_wrapper)
        finally:
            self._write(scope, account, status, is_disconnected or not complete or status == CLIENT_CLOSED_REQUEST)
            current_account.reset(token)

    def _write(self, scope: Scope, account: Account, status: int, is_disconnected: bool) -> None:
        seconds, overhead = account.durations()
        is_success = status == 200 and not is_disconnected
        if account.procedure and is_success:
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
            "warnings": ",".join(account.warnings) or None,
            "overhead_ms": round(overhead * 1000, 3) if account.procedure else None,
            "client_gone": is_disconnected,
            "trace_id": self.tracing.trace_id(),
        }
        present = {name: value for name, value in fields.items() if value is not None}
        level = logging.DEBUG if route in PROBES else logging.INFO
        access_log.log(level, ACCESS_LINE, scope["method"], route, status, extra={"fields": present})
        if account.selected_texts is not None:
            text_fields = {"prompt": account.prompt, "selected": account.selected_texts}
            text_log.info("prompt and selected text", extra={"fields": text_fields})


def _request_id(scope: Scope) -> str:
    value = dict(scope["headers"]).get(REQUEST_ID, b"")
    return value.decode() if SANE_ID.fullmatch(value) else uuid4().hex


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
