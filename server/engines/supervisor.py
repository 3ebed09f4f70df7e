"""Starts the engines, checks that they are alive, and restarts them when one has died."""

import asyncio
import logging
from collections.abc import Callable

from infalign.errors import one_line
from server.concurrency import run_to_end
from server.engines import Engines, EnginesDown
from server.observability.metrics import Metrics, resident_memory

log = logging.getLogger("infalign.server")
CHECK_SECONDS = 1.0
"""Seconds between two checks."""
ATTEMPTS = 3
"""How many starts in a row may fail before the supervisor gives up."""


class Supervisor:
    """Keeps the engines up as long as the server lives.

    Args:
        engines: The engines.
        metrics: Counts failures.
        restart: Whether to restart the engines when one has died. An engine that is started when it is needed does not
            take the others with it.
        on_failure: Called with the error when the supervisor gives up: the first start has failed, all attempts to
            restart have failed, or an engine has died and ``restart`` is false.
    """

    def __init__(
        self, engines: Engines, metrics: Metrics, restart: bool, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.engines, self.metrics, self.restart, self.on_failure = engines, metrics, restart, on_failure

    async def run(self) -> None:
        """Start the engines and watch them, until cancelled or given up."""
        try:
            await self.engines.start()
        except Exception as error:
            log.error("the engines did not start: %s", one_line(error, limit=None))
            self.on_failure(error)
            return
        log.info("ready, %.1f GiB resident", resident_memory() / 2**30)
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.engines.check()
                failures = await self.engines.discard_failed()
            except EnginesDown as error:
                self.metrics.engine_failures.inc()
                log.error("%s", error)
                if not self.restart:
                    self.on_failure(error)
                    return
                if not await self._restart():
                    return
                continue
            for failure in failures:
                self.metrics.engine_failures.inc()
                if not self.restart:
                    log.error("%s", failure)
                    self.on_failure(failure)
                    return
                log.error("%s; it starts again when it is needed", failure)

    async def _restart(self) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            await run_to_end(asyncio.to_thread(self.engines.stop))
            try:
                await self.engines.start()
            except Exception as error:
                log.error("attempt %d of %d to restart failed: %s", attempt, ATTEMPTS, one_line(error, limit=None))
                failure: BaseException = error
                await asyncio.sleep(CHECK_SECONDS * 2**attempt)
            else:
                log.info("the engines are up again")
                return True
        self.on_failure(failure)
        return False
