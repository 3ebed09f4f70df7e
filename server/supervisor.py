"""Keeps the engines up: starts them, sees that they live, and when one has died restarts them or gives up."""

import asyncio
import logging
from collections.abc import Callable

from infalign.errors import one_line
from server.concurrency import to_the_end
from server.engines import Engines, EnginesDown
from server.metrics import Metrics, resident_memory

log = logging.getLogger("infalign.server")
WATCHED_EVERY = 1.0
"""Seconds."""
ATTEMPTS = 3
"""Starts in a row that may fail before the supervisor gives up."""


class Supervisor:
    """Watches ``engines`` as long as the server lives.

    ``on_failure`` is told when it gives up: the first start has failed, all attempts to restart have, or an engine has
    died and is not to be restarted.
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
            await asyncio.sleep(WATCHED_EVERY)
            try:
                await self.engines.check()
            except EnginesDown as error:
                self.metrics.engine_failures.inc()
                log.error("%s", error)
                if not self.restart:
                    self.on_failure(error)
                    return
                if not await self._restarted():
                    return

    async def _restarted(self) -> bool:
        for attempt in range(1, ATTEMPTS + 1):
            await to_the_end(asyncio.to_thread(self.engines.stop))
            try:
                await self.engines.start()
            except Exception as error:
                log.error("attempt %d of %d to restart failed: %s", attempt, ATTEMPTS, one_line(error, limit=None))
                failure: BaseException = error
                await asyncio.sleep(WATCHED_EVERY * 2**attempt)
            else:
                log.info("the engines are up again")
                return True
        self.on_failure(failure)
        return False
