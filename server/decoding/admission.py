"""Limits how many requests are worked on at a time. Any further request is refused at once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded
from server.observability.metrics import Metrics

SMOOTHING = 0.9
"""Weight of earlier requests in the running average of durations."""


class Admission:
    """Admits a limited number of requests at a time.

    Args:
        limit: The most requests at a time.
        metrics: Counts refusals.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.metrics = limit, metrics
        self._count = 0
        self._typical_seconds = 1.0

    @property
    def is_busy(self) -> bool:
        """Whether more than half of the places are taken."""
        return self._count > self.limit / 2

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Admit one request. It counts until the ``with`` block ends.

        Raises:
            Overloaded: The limit is reached. The client may try again after the average duration of a request.
        """
        if self._count >= self.limit:
            self.metrics.rejected.labels("overloaded").inc()
            raise Overloaded(
                f"{self.limit} requests are being worked on, the most this server takes", self._typical_seconds
            )
        self._count += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._count -= 1
            self._typical_seconds = SMOOTHING * self._typical_seconds + (1 - SMOOTHING) * (time.monotonic() - start)
