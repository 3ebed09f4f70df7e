"""How large a request may be, and how slow."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import HeadersTooLarge, ServerError, TooLarge, TooSlow, Unreadable
from server.metrics import Metrics
from server.settings import Settings

PACE = 1024
"""Bytes of a body for which it may take a second more."""
GONE: Message = {"type": "http.disconnect"}

DIGITS = 19
"""Digits of a length that are read; a longer one is beyond every limit."""


class LimitBody:
    """Refuses a body that is too large, by its declared length or as soon as it has grown so far, or that is too slow.

    Headers that are too large are refused before it. Plain ASGI: it passes ``http.disconnect`` on, and reads nothing
    that the application does not. After a body that is too large the connection stays open: closed with data under way,
    it would be reset, and many a client would never see why.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.kib, self.header_kib, self.seconds = settings.max_body_kib, settings.max_header_kib, settings.idle_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._by_headers(scope)
        if refusal:
            await self._refuse(refusal, scope, receive, send)
            return
        started = asyncio.get_running_loop().time()
        read, complete, answering = 0, False, False

        async def counted() -> Message:
            nonlocal read, complete, refusal
            if complete:
                return await receive()
            if refusal:
                return GONE
            try:
                async with asyncio.timeout_at(started + self.seconds + read / PACE):
                    message = await receive()
            except TimeoutError:
                refusal = self._too_slow(read)
                return GONE
            read += len(message.get("body", b""))
            complete = not message.get("more_body")
            if read > self.kib * 1024:
                complete, refusal = False, self._too_large("more")
            # For the application this client is gone; the answer is ours.
            return GONE if refusal else message

        async def unless_refused(message: Message) -> None:
            nonlocal answering
            if answering or not refusal:
                answering = True
                await send(message)

        await self.app(scope, counted, unless_refused)
        if refusal and not answering:
            await self._refuse(refusal, scope, receive, send)

    def _by_headers(self, scope: Scope) -> ServerError | None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self.header_kib * 1024:
            return HeadersTooLarge(self.header_kib)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            return Unreadable()  # a proxy may read one length and h11 the other, and take the rest for a request
        if (declared := _declared(scope)) > self.kib * 1024:
            return self._too_large(f"{declared} bytes")
        return None

    def _too_large(self, came: str) -> ServerError:
        return TooLarge(f"body: got {came}, accepted: at most {self.kib} KiB (--max-body-kib)", "body")

    def _too_slow(self, read: int) -> ServerError:
        accepted = f"{PACE} bytes a second after the first {self.seconds:g} s (--idle-timeout)"
        return TooSlow(f"body: got {read} bytes and no end, accepted: {accepted}", "body")

    async def _refuse(self, refusal: ServerError, scope: Scope, receive: Receive, send: Send) -> None:
        if not isinstance(refusal, Unreadable):
            self.metrics.rejected.labels("too_slow" if isinstance(refusal, TooSlow) else "too_large").inc()
        await refusal.response(scope, receive, send)


def _declared(scope: Scope) -> int:
    """The content length, 0 where none is declared (or none that is a number, which the count of what comes covers)."""
    text = dict(scope["headers"]).get(b"content-length", b"").lstrip(b"0")
    return int(text[:DIGITS]) if text.isdigit() else 0
