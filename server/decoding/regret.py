"""Measures what less work costs: for a share of answers, it draws the candidates that were not drawn to the end.

The draws have the seeds that they would have had. They are nobody's: no usage, no candidate metrics and no log line
count them. They give way to requests.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import replace

from infalign.procedures import BestOfN
from server.concurrency import gather_all
from server.decoding.engine_client import EngineClient
from server.decoding.jobs import Job
from server.decoding.reader import Prompt
from server.decoding.standing import Standing
from server.errors import ServerError
from server.observability.failures import report_unexpected
from server.observability.metrics import Metrics

log = logging.getLogger("infalign.server")
MAX_MEASUREMENTS = 2
"""The most measurements at a time. Any further one is dropped."""
WAVE = 4
"""How many candidates of a measurement are drawn at a time. Between waves it gives way."""


class Regret:
    """Measures the regret of a share of answers that stopped early or rejected candidates, in the background.

    The regret is the best quantile of all N candidates minus that of the selected one (for worst-of-n, the selected
    one's minus the lowest).

    Args:
        client: Draws and scores single candidates.
        metrics: Observes the regret.
        share: Share of these answers, from 0 to 1.
        use: Marks a policy as used for the length of a ``with`` block, so that it is not unloaded meanwhile.
        is_busy: Whether the server is busy. Then nothing is measured.
    """

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        share: float,
        use: Callable[[str], AbstractContextManager[None]],
        is_busy: Callable[[], bool],
    ) -> None:
        self._client, self._metrics, self._share, self._use, self._is_busy = client, metrics, share, use, is_busy
        self._tasks: set[asyncio.Task[None]] = set()

    def consider(self, job: Job, prompt: Prompt, standing: Standing, indexes: Sequence[int], selected: float) -> None:
        """Start to measure the regret of an answer, if it is its turn and the server has time.

        Args:
            job: What was decoded.
            prompt: Its prompt.
            standing: Where rewards stand.
            indexes: The candidates that were not drawn to the end. Without any the regret is 0, and counts as well.
            selected: Quantile of the selected candidate.
        """
        if random.random() >= self._share or len(self._tasks) >= MAX_MEASUREMENTS or self._is_busy():
            return
        # An empty context: the engine calls do not belong to the request's account or trace.
        work = self._measure(job, prompt, standing, indexes, selected)
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop all measurements."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _measure(
        self, job: Job, prompt: Prompt, standing: Standing, indexes: Sequence[int], selected: float
    ) -> None:
        quantiles = [selected]
        try:
            async with asyncio.timeout(job.seconds):
                for start in range(0, len(indexes), WAVE):
                    if self._is_busy():
                        return
                    # Not for longer than a wave, so that nobody who unloads the policy waits long.
                    with self._use(job.sampling.policy or ""):
                        wave = await gather_all(
                            [self._draw(job, prompt, standing, index) for index in indexes[start : start + WAVE]]
                        )
                    quantiles += [quantile for quantile in wave if quantile is not None]
        except (ServerError, TimeoutError) as error:
            log.debug("a measurement of regret was dropped: %s", type(error).__name__)
            return
        except Exception as error:
            report_unexpected(error, "a measurement of regret")
            return
        best = max(quantiles) if isinstance(job.procedure, BestOfN) else min(quantiles)
        by = "stopping" if not job.rejects else "both" if job.rule else "rejection"
        self._metrics.regret.labels(by).observe(abs(best - selected))

    async def _draw(self, job: Job, prompt: Prompt, standing: Standing, index: int) -> float | None:
        """Draw and score one candidate. Returns its quantile, or None if it has no answer."""
        sampling = replace(job.sampling, seed=job.sampling.seed + index, logprobs=None)
        turn = await self._client.draw(prompt, sampling)
        if turn.scored is None:
            return None
        scores = await self._client.score_candidate(job.conversation, turn.scored)
        return standing.locate([scores.rewards])[0].quantile
