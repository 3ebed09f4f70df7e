"""Normalization of request paths."""

from starlette.types import ASGIApp, Receive, Scope, Send


class PathMiddleware:
    """ASGI middleware that serves ``/v1/models/`` and ``http://host/v1/models`` as ``/v1/models``.

    A redirect would not do. It would name the scheme that the server sees, which is http behind a TLS proxy, and many
    clients drop their key when they follow it. This middleware wraps all others that look at paths.

    Args:
        app: The application that it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(("http://", "https://")):
                path = "/".join(["", *path.split("/")[3:]])
            scope["path"] = path.rstrip("/") or "/"
        await self.app(scope, receive, send)
