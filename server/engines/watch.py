"""A watch that notices when an engine hangs: it owes answers and has been silent for too long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

LOOKS = 8
"""How many times a silent engine is looked at before it counts as hung."""


class NoAnswer(Exception):
    """An engine will not answer a call, because it hangs or was stopped. The message says which."""


class Watch:
    """Watches the calls of one engine, and ends them with NoAnswer when the engine hangs.

    An engine hangs if nothing has come from it for about ``silence`` seconds while it has calls to answer. An output
    for one call counts for all, so a call that waits in the queue of a busy engine is not ended. The watch looks at the
    engine LOOKS times in that period, and counts looks instead of seconds. So a pause of this process itself counts as
    one look, however long it was.

    Args:
        silence: Seconds without any output after which a busy engine counts as hung.
        request_sign: Called at every look, to ask the engine for a sign of life.
    """

    def __init__(self, silence: float, request_sign: Callable[[], None] = lambda: None) -> None:
        self.silence, self._request_sign = silence, request_sign
        self.is_hung = False
        """Whether the engine was silent for too long and has given no output since."""
        self.last_output_at = 0.0
        """Time of the last output, by the event loop's clock."""
        self._calls = set[asyncio.Timeout]()
        self._silent_looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def outstanding(self) -> int:
        """The number of calls that wait for their answer."""
        return len(self._calls)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Watch one call, for the length of the ``async with`` block.

        Raises:
            NoAnswer: The engine hangs, or was stopped.
        """
        self._loop = asyncio.get_running_loop()
        if not self._calls:
            self._reset_silence()
        if self._timer is None:
            self._look_later()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._calls.add(limit)
                yield
                self.note_output()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise NoAnswer(f"said nothing for {self.silence:g} s" if self.is_hung else "was stopped") from error
        finally:
            self._calls.discard(limit)

    def note_output(self) -> None:
        """Note that something came from the engine."""
        self.is_hung = False
        self._reset_silence()

    def stop(self) -> None:
        """End all calls. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_calls)

    def _reset_silence(self) -> None:
        self.last_output_at, self._silent_looks = asyncio.get_running_loop().time(), 0

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.silence / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._calls:
            return
        self._silent_looks += 1
        if self._silent_looks > LOOKS:
            self.is_hung = True
            self._end_calls()
        else:
            self._request_sign()
            self._look_later()

    def _end_calls(self) -> None:
        now = asyncio.get_running_loop().time()
        for limit in self._calls:
            limit.reschedule(now)
        self._calls.clear()
