"""Runs many tasks, some at a time, and stops all of them when one cannot go on."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

Task = Callable[[], Awaitable[None]]
"""Starts a task."""


async def run_tasks(tasks: Iterable[Task], workers: int) -> None:
    """Run tasks.

    Args:
        tasks: The tasks. They are taken from the iterator one by one.
        workers: Tasks that run at a time.

    Raises:
        Exception: What a task raised first. The others are cancelled.
    """
    remaining = iter(tasks)

    async def work() -> None:
        for start in remaining:
            await start()

    running = [asyncio.create_task(work()) for _ in range(workers)]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
