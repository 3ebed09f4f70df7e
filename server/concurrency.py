"""Helpers that run several coroutines concurrently."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that must not be interrupted.

    If the caller is cancelled meanwhile, the cancellation takes effect after ``work`` has ended.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.gather(task, return_exceptions=True)


async def gather_all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently and return all their results, in order.

    The first failure cancels the others. So does cancelling the caller. All of them have ended when this returns.
    """
    if len(work) == 1:
        return [await work[0]]
    return list((await gather_at_least(len(work), work)).results.values())


@dataclass(frozen=True)
class GatherResult(Generic[T]):
    """Results and failures of coroutines that ran concurrently."""

    results: dict[int, T]
    """Results by the position of their coroutine, in that order."""
    failures: list[BaseException]
    """One exception for each coroutine without a result; a TimeoutError if time ran out."""


async def gather_at_least(
    minimum: int, work: Sequence[Coroutine[Any, Any, T]], until: float | None = None
) -> GatherResult[T]:
    """Run coroutines concurrently and return the results of those that succeed in time.

    All coroutines are cancelled as soon as ``minimum`` results are out of reach, when time runs out, or when the caller
    is cancelled. None of them is running when this returns.

    Args:
        minimum: How many results are needed.
        work: The coroutines.
        until: When to give up, as a time of the event loop's clock. None means never.

    Returns:
        At least ``minimum`` results, and the failures.

    Raises:
        Exception: The first failure, if there are fewer than ``minimum`` results.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    pending = set(tasks)
    failures: list[BaseException] = []
    try:
        async with asyncio.timeout_at(until):
            while pending and len(tasks) - len(failures) >= minimum:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                failures += [error for task in done if (error := task.exception())]
    except TimeoutError as error:
        failures += [error for task in pending if not task.done() or task.exception()]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    outcomes = [(place, task) for place, task in enumerate(tasks) if not task.cancelled()]
    results = {place: task.result() for place, task in outcomes if not task.exception()}
    if len(results) < minimum:
        raise failures[0]
    return GatherResult(results, failures)


@dataclass
class _SharedTask(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class Shared(Generic[T]):
    """Runs a piece of work once for all callers that ask for it at the same time.

    The work is cancelled when no caller waits for it any more.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, _SharedTask[T]] = {}

    async def get(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the work for ``key``.

        Args:
            key: Identifies the work.
            work: Starts the work. It is called only if the work for ``key`` is not running yet.

        Raises:
            Exception: What the work raised. Every waiting caller gets it.
        """
        entry = self._tasks.get(key)
        if entry is None:
            entry = self._tasks[key] = _SharedTask(asyncio.create_task(work()))
        entry.waiters += 1
        try:
            return await asyncio.shield(entry.task)
        finally:
            entry.waiters -= 1
            if not entry.waiters:
                del self._tasks[key]
                entry.task.cancel()
                await asyncio.gather(entry.task, return_exceptions=True)
