"""An engine that most servers never need."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

from infalign.errors import one_line
from server.engines.base import EnginesDown


class LateEngine:
    """Launched when it is first asked for, in a thread; all who ask meanwhile wait for the same launch.

    One who goes away does not end the launch. After one that failed the next to ask tries again. The thread lives as
    long as this object does: the engine would end with it.
    """

    def __init__(self, launch: Callable[[], Any]) -> None:
        self._launch = launch
        self._thread = ThreadPoolExecutor(1, "launch")
        self._launched: Future[Any] | None = None
        self._lock = Lock()  # closing is done in another thread
        self._closed = False

    @property
    def up(self) -> Any:
        """The engine, None where it is not launched."""
        launched = self._launched
        return launched.result() if launched and launched.done() and not launched.exception() else None

    async def get(self) -> Any:
        """The engine, launched if need be.

        Raises:
            EnginesDown: it did not start, or is shut down.
        """
        with self._lock:
            if self._closed:
                raise EnginesDown("the reference is shut down")
            if self._launched is None or (self._launched.done() and self._launched.exception()):
                self._launched = self._thread.submit(self._launch)
        try:
            return await asyncio.shield(asyncio.wrap_future(self._launched))
        except Exception as error:
            raise EnginesDown(f"the reference did not start ({one_line(error)})") from error

    def close(self) -> Any:
        """Launch no more, wait for a launch under way, and give up the engine, if there is one, to be shut down."""
        with self._lock:
            self._closed = True
        if self._launched is not None:
            with suppress(Exception):
                return self._launched.result()
        return None
