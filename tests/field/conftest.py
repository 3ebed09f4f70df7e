"""The fixtures of the server's unit tests: the real application over engines in memory."""

from tests.unit.server.conftest import anyio_backend, app, client, engines, nothing_is_kept_at_home, served

__all__ = ["anyio_backend", "app", "client", "engines", "nothing_is_kept_at_home", "served"]
