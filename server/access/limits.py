"""Limits of one API key: requests per minute and requests at a time."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from server.errors import Overloaded
from server.observability.metrics import Metrics

RETRY_SECONDS = 1.0
"""Seconds after which a key with too many running requests may try again. When one of them ends is not known."""


class Limits:
    """Counts the requests of each key, in this process only.

    Args:
        metrics: Counts refusals.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    @asynccontextmanager
    async def admit(self, name: str, per_minute: int | None, concurrent: int | None) -> AsyncIterator[None]:
        """Admit one request. It counts as running until the ``async with`` block ends.

        Args:
            name: Name of the key.
            per_minute: The most requests in any minute; no limit if None.
            concurrent: The most requests at a time; no limit if None.

        Raises:
            Overloaded: The key is at one of its limits. Refused requests do not count.
        """
        if concurrent is not None and self._running[name] >= concurrent:
            self.metrics.rejected.labels("concurrency").inc()
            raise Overloaded(f"{name} has {concurrent} requests running, as many as its key may", RETRY_SECONDS)
        self._running[name] += 1
        try:
            if per_minute is not None:
                await self._count(name, per_minute)
            yield
        finally:
            self._running[name] -= 1

    async def _count(self, name: str, per_minute: int) -> None:
        item = RateLimitItemPerMinute(per_minute)
        if not await self._windows.hit(item, name):
            self.metrics.rejected.labels("rate").inc()
            window = await self._windows.get_window_stats(item, name)
            raise Overloaded(
                f"{name} has sent {per_minute} requests within a minute, as many as its key may",
                window.reset_time - time(),
            )
