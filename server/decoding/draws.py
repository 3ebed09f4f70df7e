"""One candidate while it is drawn: its tokens, the laws of its quantile at checkpoints, and its end."""

import asyncio
import math
from collections.abc import Callable, Coroutine

from infalign.quantile_law import QuantileLaw
from server.decoding.candidates import Candidates
from server.decoding.engine_client import Scores
from server.engines import Delta
from server.engines.turns import Turn

Read = Callable[[int, list[int]], Coroutine[None, None, QuantileLaw | None]]
"""Reads the tokens of a candidate with an index. It gives None if that failed."""


class Draw:
    """Draws and scores one candidate, and reads its beginning at every checkpoint as soon as it gets there.

    It does not wait at checkpoints. How far it has come counts only up to the checkpoint of its round, so that nothing
    depends on how fast it is drawn.

    Args:
        index: Index of the candidate.
        step: Tokens between two checkpoints.
        group: Draws and scores candidates.
        read: Reads beginnings.
        notify: Called when the candidate may have got as far as its round goes.
    """

    def __init__(self, index: int, step: int, group: Candidates, read: Read, notify: Callable[[], None]) -> None:
        self.index, self._step, self._group, self._read, self._notify = index, step, group, read, notify
        self._tokens: list[int] = []
        self._length: int | None = None
        self._reads: list[asyncio.Task[QuantileLaw | None]] = []
        self._round: float = 0
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: notify())

    @property
    def tokens(self) -> int:
        """How many tokens were drawn so far."""
        return len(self._tokens)

    @property
    def has_ended(self) -> bool:
        """Whether it is not longer than the checkpoint of its round."""
        return self._length is not None and self._length <= self._limit

    @property
    def is_ready(self) -> bool:
        """Whether all is known that its round takes: rewards if it has ended, else the law of its quantile."""
        if self.has_ended or self.failure:
            return self._task.done()
        return self.tokens > self._limit and self._reads[int(self._round) - 1].done()

    @property
    def failure(self) -> BaseException | None:
        """What it has raised."""
        return self._task.exception() if self._task.done() and not self._task.cancelled() else None

    @property
    def is_complete(self) -> bool:
        """Whether it is drawn and scored, in this round or ahead of it."""
        return self._task.done() and not self.failure

    @property
    def result(self) -> tuple[Turn, Scores | None]:
        """The candidate, and its rewards if it came to an answer. Only if it is complete."""
        return self._task.result()

    @property
    def law(self) -> QuantileLaw | None:
        """The law of its quantile at the checkpoint of its round, if it could be read."""
        return self._reads[int(self._round) - 1].result()

    def begin_round(self) -> None:
        """Go on to the next checkpoint."""
        self._round += 1

    def begin_last_round(self) -> None:
        """Go on to the end. Nothing more is read."""
        self._round = math.inf
        for read in self._reads:
            read.cancel()

    def cancel(self) -> None:
        """Stop to draw and to read."""
        self._task.cancel()
        for read in self._reads:
            read.cancel()

    async def join(self) -> None:
        """Wait until nothing runs any more, after :meth:`cancel`."""
        await asyncio.gather(self._task, *self._reads, return_exceptions=True)

    @property
    def _limit(self) -> float:
        return self._round * self._step

    async def _run(self) -> tuple[Turn, Scores | None]:
        turn = await self._group.draw_one(self.index, self._grow)
        self._length = self.tokens
        for read in self._reads[max(self._length - 1, 0) // self._step :]:
            read.cancel()  # of the whole response: its reward will be known
        self._notify()
        return turn, await self._group.score_one(self.index, turn)

    def _grow(self, delta: Delta) -> None:
        was_within = self.tokens <= self._limit
        self._tokens += delta.token_ids
        while self._round < math.inf and (len(self._reads) + 1) * self._step <= self.tokens:
            beginning = self._tokens[: (len(self._reads) + 1) * self._step]
            task = asyncio.create_task(self._read(self.index, beginning))
            task.add_done_callback(lambda _: self._notify())
            self._reads.append(task)
        if was_within and self.tokens > self._limit:
            self._notify()
