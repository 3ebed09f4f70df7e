"""A watch over an engine: it is hung when it owes answers and has said nothing for too long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LOOKS = 8
"""How often an engine is looked at before it is taken for hung."""


class NoAnswer(Exception):
    """An engine will not answer a call: it is hung, or it was stopped. The text says which."""


class Watch:
    """The calls of one engine, which end with NoAnswer when nothing has come from it for about ``silence`` seconds.

    All calls count together: one that waits in the queue of a busy engine is not given up while others are answered.
    Silence is counted in looks. However long this process itself stood still, that is one look.

    Args:
        silence: seconds.
        ask: called at every look, to ask the engine for a sign of life.
    """

    def __init__(self, silence: float, ask: Callable[[], None] = lambda: None) -> None:
        self.silence, self._ask = silence, ask
        self.hung = False
        """Whether the engine was silent for too long, and nothing has come from it since."""
        self.heard_at = 0.0
        self._calls = set[asyncio.Timeout]()
        self._silent_looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def outstanding(self) -> int:
        """Calls that wait for their answer."""
        return len(self._calls)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Watch one call.

        Raises:
            NoAnswer: the engine is hung, or was stopped.
        """
        self._loop = asyncio.get_running_loop()
        if not self._calls:
            self._count_anew()
        if self._timer is None:
            self._look_later()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._calls.add(limit)
                yield
                self.heard()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise NoAnswer(f"said nothing for {self.silence:g} s" if self.hung else "was stopped") from error
        finally:
            self._calls.discard(limit)

    def heard(self) -> None:
        """Note that something came from the engine."""
        self.hung = False
        self._count_anew()

    def stop(self) -> None:
        """End all calls, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_calls)

    def _count_anew(self) -> None:
        self.heard_at, self._silent_looks = asyncio.get_running_loop().time(), 0

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.silence / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._calls:
            return
        self._silent_looks += 1
        if self._silent_looks > LOOKS:
            self.hung = True
            self._end_calls()
        else:
            self._ask()
            self._look_later()

    def _end_calls(self) -> None:
        now = asyncio.get_running_loop().time()
        for limit in self._calls:
            limit.reschedule(now)
        self._calls.clear()
