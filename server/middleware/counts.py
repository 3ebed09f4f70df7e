"""Counts answers by route and status."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.metrics import Metrics


class RequestCountMiddleware:
    """ASGI middleware that counts answers by route and status.

    Args:
        app: The application that it wraps.
        metrics: Where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_wrapper(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                self.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, send_wrapper if scope["type"] == "http" else send)
