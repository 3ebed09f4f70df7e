"""Paths as clients write them."""

from starlette.types import ASGIApp, Receive, Scope, Send


class NormalizePath:
    """Serves ``/v1/models/`` and ``http://host/v1/models`` as ``/v1/models``.

    A redirect would name the scheme that the server sees, which is http behind a proxy that ends TLS, and many clients
    drop their key on it. Plain ASGI, around all that look at paths.
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
