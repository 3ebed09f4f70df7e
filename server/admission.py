"""How many requests are worked on at a time: one more is refused at once, and told when to come back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded
from server.metrics import Metrics

MEMORY = 0.9
"""Weight of what was known of the duration of a request before the last one."""


class Admission:
    """Admits up to ``limit`` decoding requests at a time."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.metrics = limit, metrics
        self._inside = 0
        self._typical = 1.0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            Overloaded: all are taken; by then one is typically free again.
        """
        if self._inside >= self.limit:
            self.metrics.rejected.labels("overloaded").inc()
            raise Overloaded(f"{self.limit} requests are being worked on, the most this server takes", self._typical)
        self._inside += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._inside -= 1
            self._typical = MEMORY * self._typical + (1 - MEMORY) * (time.monotonic() - started)
