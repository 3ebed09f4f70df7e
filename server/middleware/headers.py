"""Headers that tell browsers what they must not do with an answer."""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = Iterable[tuple[bytes, bytes]]
EVERYWHERE = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
DATA = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""Of JSON, text and streams, which load nothing."""
PAGE = (
    b"content-security-policy",
    # FastAPI writes a script into the page, Swagger UI styles, ReDoc starts a worker.
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)
"""Of /docs and /redoc, whose scripts and styles this server has itself."""
NO_STORE = (b"cache-control", b"no-store")
"""Of everything under /v1: prompts and responses are in no cache."""


class SecureHeaders:
    """Adds them to every answer, streams too. Plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        private = scope["path"].startswith("/v1")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *EVERYWHERE]
                headers.append(PAGE if _is_page(headers) else DATA)
                if private:
                    headers = [header for header in headers if header[0].lower() != NO_STORE[0]] + [NO_STORE]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, sending)


def _is_page(headers: Headers) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)
