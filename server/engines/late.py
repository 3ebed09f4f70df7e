"""An engine that is launched when it is first needed."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

from infalign.errors import one_line
from server.engines.base import EnginesDown

log = logging.getLogger("infalign.server")
PAUSE = 30.0
"""Seconds after a launch in which no other begins, if it failed or the engine died.

Each launch loads vLLM, which takes the processor from the engines that are up.
"""


class LateEngine:
    """Launches an engine when it is first needed. Callers that need it meanwhile wait for the same launch.

    A caller that is cancelled does not end the launch. If a launch fails, or the engine dies soon after it, a caller
    after ``pause`` tries again. The launch runs in a thread that lives as long as this object, because the engine's
    process would end with the thread.

    Args:
        role: What the engine is for. Errors name it.
        launch: Launches the engine. It blocks until the engine is up.
        pause: Seconds after a launch in which no other begins.
    """

    def __init__(self, role: str, launch: Callable[[], Any], pause: float = PAUSE) -> None:
        self._role, self._launch, self._pause = role, launch, pause
        self._next_try = 0.0
        """When the next launch may begin, by :func:`time.monotonic`."""
        self._thread = ThreadPoolExecutor(1, "launch")
        self._future: Future[Any] | None = None
        self._lock = Lock()  # close() runs in another thread than get()
        self._is_closed = False

    @property
    def engine(self) -> Any:
        """The engine; None if it is not up."""
        future = self._future
        return future.result() if future and future.done() and not self._has_failed(future) else None

    async def get(self) -> Any:
        """Return the engine. Launch it if it is not up.

        Raises:
            EnginesDown: The launch failed, the engine died soon after its launch, or :meth:`close` was called.
        """
        with self._lock:
            if self._is_closed:
                raise EnginesDown(f"the {self._role} is shut down")
            if self._future is None or self._has_failed(self._future):
                if time.monotonic() >= self._next_try:
                    self._future = self._thread.submit(self._start)
                elif self._future is None:
                    raise EnginesDown(f"the {self._role} died soon after its start")
        try:
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except Exception as error:
            raise EnginesDown(f"the {self._role} did not start ({one_line(error)})") from error

    @staticmethod
    def _has_failed(future: "Future[Any]") -> bool:
        return future.done() and future.exception() is not None

    def _start(self) -> Any:
        log.info("the %s is needed, and starts", self._role)
        start = time.monotonic()
        try:
            engine = self._launch()
        except Exception as error:
            log.error("the %s did not start: %s", self._role, one_line(error, limit=None))
            raise
        finally:
            self._next_try = time.monotonic() + self._pause
        log.info("the %s is up, after %.0f s", self._role, time.monotonic() - start)
        return engine

    def discard(self) -> None:
        """Forget the engine, which the caller shuts down. The next caller of :meth:`get` launches another."""
        with self._lock:
            self._future = None

    def close(self) -> Any:
        """Wait for a launch that is under way, and allow no further one.

        Returns:
            The engine, for the caller to shut down; None if there is none.
        """
        with self._lock:
            self._is_closed = True
        if self._future is not None:
            with suppress(Exception):
                return self._future.result()
        return None
