"""Authentication by API key."""

from contextlib import AsyncExitStack

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.callers import Keyring
from server.access.limits import Limits
from server.decoding.catalogue import Catalogue
from server.errors import Overloaded, Unauthorized
from server.middleware.probe_calls import BODIES, describe_call, read_body
from server.observability.metrics import Metrics
from server.settings import Settings

GUARDED_PREFIX = "/v1"
"""Paths that need a key."""


class AuthenticationMiddleware:
    """ASGI middleware that lets in requests with a valid API key, within the limits of the key.

    Everything under /v1 needs a key, whether a route exists or not. The rest is open. The decision is made before the
    body is read. There is one exception: when a key is at its limits, the body of a decoding request is read, because
    only the body says whether the refusal belongs in the audit log.

    Args:
        app: The application that it wraps.
        keyring: The valid keys.
        limits: Counts the requests of each key.
        catalogue: The policies that are served, to describe refused calls.
        settings: The operator's settings.
        metrics: Counts refusals.
    """

    def __init__(
        self, app: ASGIApp, keyring: Keyring, limits: Limits, catalogue: Catalogue, settings: Settings, metrics: Metrics
    ) -> None:
        self.app, self.keyring, self.limits, self.metrics = app, keyring, limits, metrics
        self.catalogue, self.max_body_bytes = catalogue, settings.max_body_kib << 10

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_guarded(scope["path"]):
            await self.app(scope, receive, send)
            return
        async with AsyncExitStack() as stack:
            try:
                caller = scope["caller"] = self.keyring.authenticate(scope["headers"])
                admission = self.limits.admit(caller.name, caller.requests_per_minute, caller.concurrent)
                await stack.enter_async_context(admission)
            except Unauthorized as error:
                self.metrics.rejected.labels("unauthorized").inc()
                await error.response(scope, receive, send)
            except Overloaded as error:
                if scope["path"] in BODIES:
                    body = await read_body(receive, self.max_body_bytes)
                    scope["audit"].call = describe_call(scope, self.catalogue, body)
                await error.response(scope, receive, send)
            else:
                await self.app(scope, receive, send)


def _is_guarded(path: str) -> bool:
    return path == GUARDED_PREFIX or path.startswith(GUARDED_PREFIX + "/")
