"""How large a request may be."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import TooLarge
from server.metrics import Metrics

DIGITS = 19
"""Digits of a length that are read; a longer one is beyond every limit."""


class LimitBody:
    """Refuses a body of more than ``kib`` KiB, by its declared length or as soon as it has grown so far.

    Plain ASGI: it passes ``http.disconnect`` on, and reads nothing that the application does not. The connection stays
    open: closed with data under way, it would be reset, and many a client would never see why.
    """

    def __init__(self, app: ASGIApp, kib: int, metrics: Metrics) -> None:
        self.app, self.kib, self.metrics = app, kib, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.kib * 1024
        if (declared := _declared(scope)) > limit:
            await self._refusal(f"{declared} bytes").response(scope, receive, send)
            return
        read, answering = 0, False

        async def counted() -> Message:
            nonlocal read
            if read > limit:
                return {"type": "http.disconnect"}
            message = await receive()
            read += len(message.get("body", b""))
            # For the application this client is gone; the answer is ours.
            return {"type": "http.disconnect"} if read > limit else message

        async def unless_refused(message: Message) -> None:
            nonlocal answering
            if answering or read <= limit:
                answering = True
                await send(message)

        await self.app(scope, counted, unless_refused)
        if read > limit and not answering:
            await self._refusal("more").response(scope, receive, send)

    def _refusal(self, came: str) -> TooLarge:
        self.metrics.rejected.labels("too_large").inc()
        return TooLarge(f"body: got {came}, accepted: at most {self.kib} KiB (--max-body-kib)", "body")


def _declared(scope: Scope) -> int:
    """The content length, 0 where none is declared (or none that is a number, which the count of what comes covers)."""
    text = dict(scope["headers"]).get(b"content-length", b"").lstrip(b"0")
    return int(text[:DIGITS]) if text.isdigit() else 0
