"""Security headers for browsers."""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = Iterable[tuple[bytes, bytes]]
COMMON_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
DATA_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""For JSON, text and streams, which load nothing."""
PAGE_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)
"""For the playground. Its scripts and styles are files of this server, so nothing that a model says can be one."""
DOCS_POLICY = (
    b"content-security-policy",
    # FastAPI puts a script into the page, Swagger UI inserts styles, and ReDoc starts a worker.
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)
"""For /docs and /redoc. The server itself provides their scripts and styles."""
DOCS = ("/docs", "/redoc")
"""Start of the paths of these pages."""
NO_STORE = (b"cache-control", b"no-store")
"""For everything under /v1, so that no cache stores prompts and responses."""


class SecurityHeadersMiddleware:
    """ASGI middleware that adds security headers to every answer, including streams.

    Args:
        app: The application that it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        private = scope["path"].startswith("/v1")

        async def send_wrapper(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *COMMON_HEADERS]
                headers.append(_choose_policy(scope["path"], message["status"], headers))
                if private:
                    headers = [header for header in headers if header[0].lower() != NO_STORE[0]] + [NO_STORE]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_wrapper)


def _choose_policy(path: str, status: int, headers: Headers) -> tuple[bytes, bytes]:
    if not _is_page(status, headers):
        return DATA_POLICY
    return DOCS_POLICY if path.startswith(DOCS) else PAGE_POLICY


def _is_page(status: int, headers: Headers) -> bool:
    """Whether an answer is a page, or may confirm one: a 304 does not say its type, but replaces a page's policy."""
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return status == 304 or any(kind.startswith(b"text/html") for kind in kinds)
