"""Work side by side."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which cannot be interrupted: being cancelled takes effect when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.gather(task, return_exceptions=True)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure, or being cancelled, cancels the rest and waits for them to end."""
    if len(work) == 1:
        return [await work[0]]
    return list((await at_least(len(work), work)).results.values())


@dataclass(frozen=True)
class Gathered(Generic[T]):
    """What came of several pieces of work."""

    results: dict[int, T]
    """By place in the work, in that order."""
    failures: list[BaseException]
    """One for each piece that has no result; TimeoutError where the time was up."""


async def at_least(fewest: int, work: Sequence[Coroutine[Any, Any, T]], until: float | None = None) -> Gathered[T]:
    """All results that can be had by ``until``, a time of the event loop's clock, if they are ``fewest`` or more.

    Once so many have failed that there cannot be ``fewest``, the rest is cancelled, as it is when the time is up or
    when the caller is cancelled; nothing runs on after this has returned.

    Raises:
        Exception: the first failure, where there are fewer.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    pending = set(tasks)
    failures: list[BaseException] = []
    try:
        async with asyncio.timeout_at(until):
            while pending and len(tasks) - len(failures) >= fewest:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                failures += [error for task in done if (error := task.exception())]
    except TimeoutError as error:
        failures += [error for task in pending if not task.done() or task.exception()]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    ended = [(place, task) for place, task in enumerate(tasks) if not task.cancelled()]
    results = {place: task.result() for place, task in ended if not task.exception()}
    if len(results) < fewest:
        raise failures[0]
    return Gathered(results, failures)


@dataclass
class _Awaited(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Shared(Generic[T]):
    """Work that is done once for all who want the same at the same time, and goes on as long as one of them waits."""

    def __init__(self) -> None:
        self._underway: dict[str, _Awaited[T]] = {}

    async def get(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work on ``key``; ``work`` begins it where it is not under way.

        Raises:
            Exception: what the work raised, to each who waits for it.
        """
        awaited = self._underway.get(key)
        if awaited is None:
            awaited = self._underway[key] = _Awaited(asyncio.create_task(work()))
        awaited.waiting += 1
        try:
            return await asyncio.shield(awaited.task)
        finally:
            awaited.waiting -= 1
            if not awaited.waiting:
                del self._underway[key]
                awaited.task.cancel()
                await asyncio.gather(awaited.task, return_exceptions=True)
