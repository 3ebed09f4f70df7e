"""Check of the ``Host`` header, for a server without API keys.

A web page can point a host name of its own at 127.0.0.1, and then talk to a local server as if it were the page's own
origin (DNS rebinding). The browser still sends the page's name as ``Host``, so requests with such a name are refused.
"""

import re
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import BadRequest, Misdirected
from server.observability.metrics import Metrics

AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?")
"""Host and optional port."""
MAX_SHOWN = 80
"""Characters of a refused ``Host`` that the error repeats."""


class LocalHostMiddleware:
    """ASGI middleware that answers only requests whose ``Host`` is this machine.

    Args:
        app: The application that it wraps.
        host: The address that the server binds. It is accepted too.
        metrics: Counts refusals.
    """

    def __init__(self, app: ASGIApp, host: str, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.names = {"localhost", host.lower()}
        self.host_list = ", ".join(dict.fromkeys(["localhost", "127.0.0.1", "[::1]", host]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            self.metrics.rejected.labels("host").inc()
            await refusal.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> BadRequest | Misdirected | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not hosts and scope["http_version"] == "1.0":  # HTTP/1.0 has no Host header, and no browser uses it
            return None
        if len(hosts) != 1:
            return BadRequest(f"Host: came {len(hosts)} times, accepted: once", "Host")
        if self._is_local(hosts[0]):
            return None
        return Misdirected(
            f"Host: got {hosts[0][:MAX_SHOWN]!r}, accepted: {self.host_list}, with any port; "
            "a server with keys (--keys) answers to every name",
            "Host",
        )

    def _is_local(self, authority: str) -> bool:
        match = AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = match[1].lower()
        if name in self.names:
            return True
        try:
            return ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False
