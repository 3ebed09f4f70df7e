"""Sends a request again while it may still succeed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from workbench.errors import Busy, RequestFailed, Unreachable

T = TypeVar("T")
LONGEST_BACKOFF = 30.0
"""Most seconds before a request that failed is sent again."""


async def back_off(failures: int) -> None:
    """Wait before something is tried again: two seconds and twice as long each time, less a random part.

    Args:
        failures: How often it has failed.
    """
    await asyncio.sleep(min(LONGEST_BACKOFF, 2.0**failures) * random.uniform(0.5, 1))


async def persist(request: Callable[[], Awaitable[T]], retries: int) -> T:
    """Send a request until it is answered.

    A server that is busy or gone is waited for by the connection's pace, and does not count as a failure.

    Args:
        request: Sends the request.
        retries: How often it is sent again after a failure.

    Returns:
        The answer.

    Raises:
        RequestFailed: It failed too often.
        RequestRefused: The server will never accept it.
        ServerGone: The server has not answered for too long.
        AccessDenied: The server does not accept the key.
    """
    failures = 0
    while True:
        try:
            return await request()
        except (Busy, Unreachable):
            continue
        except RequestFailed:
            failures += 1
            if failures > retries:
                raise
            await back_off(failures)
