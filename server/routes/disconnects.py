"""Cancels work when the client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from starlette.requests import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection, so nobody reads the answer."""


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and cancel it as soon as the client closes the connection.

    Args:
        request: The request of the client.
        work: The work.

    Raises:
        ClientGone: The client closed the connection.
    """
    task, is_disconnected = cast("asyncio.Task[T]", asyncio.current_task()), False

    async def watch() -> None:
        nonlocal is_disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_disconnected = True
        task.cancel()

    # The work stays in this task. A new task would have to wait for its turn on the event loop.
    watch_task = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if is_disconnected and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        watch_task.cancel()
