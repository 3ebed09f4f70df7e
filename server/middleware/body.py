"""Limits on the size of a request and on how slowly its body may arrive."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import HeadersTooLarge, ServerError, TooLarge, TooSlow, Unreadable
from server.observability.metrics import Metrics
from server.settings import Settings

PACE = 1024
"""A body may take one second longer for each of so many bytes."""
DISCONNECT: Message = {"type": "http.disconnect"}
"""Message that tells the application that the client has disconnected."""

DIGITS = 19
"""How many digits of a length are read. A longer number exceeds every limit."""


class BodyLimitMiddleware:
    """ASGI middleware that refuses requests whose body is too large or too slow, or whose headers are too large.

    A body is too large by its declared length or as soon as it has grown too far. The middleware reads nothing that the
    application does not read, and passes ``http.disconnect`` on. After a body that is too large, the connection stays
    open: if it were closed while the client still sends, many clients would not see the answer.

    Args:
        app: The application that it wraps.
        settings: The operator's settings, with the limits.
        metrics: Counts refusals.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.max_body_kib, self.max_header_kib, self.idle_timeout = (
            settings.max_body_kib,
            settings.max_header_kib,
            settings.idle_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._check_headers(scope)
        if refusal:
            await self._refuse(refusal, scope, receive, send)
            return
        start = asyncio.get_running_loop().time()
        body_bytes, complete, response_started = 0, False, False

        async def receive_wrapper() -> Message:
            nonlocal body_bytes, complete, refusal
            if complete:
                return await receive()
            if refusal:
                return DISCONNECT
            try:
                async with asyncio.timeout_at(start + self.idle_timeout + body_bytes / PACE):
                    message = await receive()
            except TimeoutError:
                refusal = self._too_slow(body_bytes)
                return DISCONNECT
            body_bytes += len(message.get("body", b""))
            complete = not message.get("more_body")
            if body_bytes > self.max_body_kib * 1024:
                complete, refusal = False, self._too_large("more")
            # To the application the client looks disconnected. The middleware answers instead.
            return DISCONNECT if refusal else message

        async def send_wrapper(message: Message) -> None:
            nonlocal response_started
            if response_started or not refusal:
                response_started = True
                await send(message)

        await self.app(scope, receive_wrapper, send_wrapper)
        if refusal and not response_started:
            await self._refuse(refusal, scope, receive, send)

    def _check_headers(self, scope: Scope) -> ServerError | None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self.max_header_kib * 1024:
            return HeadersTooLarge(self.max_header_kib)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            return Unreadable()  # a proxy might use one length and h11 the other: request smuggling
        if (length := _content_length(scope)) > self.max_body_kib * 1024:
            return self._too_large(f"{length} bytes")
        return None

    def _too_large(self, size: str) -> ServerError:
        return TooLarge(f"body: got {size}, accepted: at most {self.max_body_kib} KiB (--max-body-kib)", "body")

    def _too_slow(self, body_bytes: int) -> ServerError:
        requirement = f"{PACE} bytes a second after the first {self.idle_timeout:g} s (--idle-timeout)"
        return TooSlow(f"body: got {body_bytes} bytes and no end, accepted: {requirement}", "body")

    async def _refuse(self, refusal: ServerError, scope: Scope, receive: Receive, send: Send) -> None:
        if not isinstance(refusal, Unreadable):
            self.metrics.rejected.labels("too_slow" if isinstance(refusal, TooSlow) else "too_large").inc()
        await refusal.response(scope, receive, send)


def _content_length(scope: Scope) -> int:
    """The declared length of the body; 0 if there is none or it is not a number. The body is counted anyway."""
    text = dict(scope["headers"]).get(b"content-length", b"").lstrip(b"0")
    return int(text[:DIGITS]) if text.isdigit() else 0
