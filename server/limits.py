"""What one key may ask for: requests in any minute, requests at a time."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from server.errors import Overloaded
from server.metrics import Metrics

SOON = 1.0
"""Seconds after which a key may try again that has too many requests running: when one ends is not known."""


class Limits:
    """Counts per key, in this process."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    @asynccontextmanager
    async def place(self, name: str, per_minute: int | None, at_a_time: int | None) -> AsyncIterator[None]:
        """A place for one request of the key ``name``, which it holds to its end.

        Raises:
            Overloaded: there is none now. Refused requests do not count.
        """
        if at_a_time is not None and self._running[name] >= at_a_time:
            self.metrics.rejected.labels("concurrency").inc()
            raise Overloaded(f"{name} has {at_a_time} requests running, as many as its key may", SOON)
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
