"""The pace of requests: as many at a time as the server takes, none while it is gone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workbench.errors import Busy, ServerGone, Unreachable

FIRST_WAIT, LONGEST_WAIT = 1.0, 10.0
"""Least and most seconds between two attempts to reach a server that does not answer."""
RECOVERY = 16
"""Rounds of requests after which one more is tried at a time. A refusal costs the wait that the server asks for."""


class Pace:
    """Decides when a request may be sent.

    The number of requests at a time is halved when the server refuses one because it has too many, and rises slowly
    after that (additive increase, multiplicative decrease, as in TCP). While no server answers, requests wait.

    Args:
        most: Most requests at a time.
        patience: Seconds without any answer after which the server is given up.
    """

    def __init__(self, most: int, patience: float) -> None:
        self._patience = patience
        self.allow(most)
        self._running = 0
        self._resume_at = 0.0
        self._gone_since: float | None = None
        self._failures = 0
        self._changed = asyncio.Event()

    def allow(self, most: int) -> None:
        """Set the most requests at a time, and begin with as many."""
        self._most, self._allowed = most, float(most)

    @property
    def waits(self) -> bool:
        """Whether the server did not answer at last."""
        return self._gone_since is not None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until a request may be sent, and learn from how it ends.

        Raises:
            ServerGone: There was no answer for longer than the user waits.
        """
        await self._wait()
        self._running += 1
        start = time.monotonic()
        try:
            yield
        except Busy as error:
            self._slow_down(start, error.retry_after)
            raise
        except Unreachable as error:
            self._note_silence(error)
            raise
        except Exception:  # an answer too
            self._note_answer()
            raise
        else:
            self._note_answer()
            self._allowed = min(self._most, self._allowed + 1 / (RECOVERY * self._allowed))
        finally:
            self._running -= 1
            self._wake()

    async def _wait(self) -> None:
        while True:
            pause = self._resume_at - time.monotonic()
            # While the server is gone, a single request tries to reach it.
            limit = 1 if self.waits else max(1, int(self._allowed))
            if pause <= 0 and self._running < limit:
                return
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), max(pause, 0.01) if pause > 0 else None)
            except TimeoutError:
                continue

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _slow_down(self, start: float, retry_after: float) -> None:
        """Halve the number of requests once for all refusals of requests that were sent together."""
        self._note_answer()
        if start >= self._resume_at:
            self._allowed = max(1.0, self._allowed / 2)
            self._resume_at = time.monotonic() + retry_after

    def _note_answer(self) -> None:
        self._gone_since, self._failures = None, 0

    def _note_silence(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self._gone_since is None:
            self._gone_since = now
        if now - self._gone_since > self._patience:
            raise ServerGone(f"{error}; given up after {self._patience:g} s without an answer") from error
        self._resume_at = now + min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._failures, 10))
        self._failures += 1
