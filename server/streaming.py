"""Server-sent events: what happens to a job, told as it happens, and the answer at the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from server.decoder import Decoded, Event
from server.errors import ServerError
from server.failures import unexpected
from server.routes.common import while_connected

Work = Callable[[Callable[[Event], None]], Coroutine[Any, Any, Decoded]]
Told = Callable[[Event | Decoded], Iterable[ServerSentEvent]]


async def stream(request: Request, work: Work, tell: Told, last: Iterable[ServerSentEvent] = ()) -> EventSourceResponse:
    """The answer of ``work``, which is told by ``tell`` event by event; ``last`` closes it.

    The status line waits for the first event, so that what fails before it is an ordinary error. What fails after it is
    an event with the error's envelope. A client that goes away cancels the work.

    Raises:
        ServerError: the work failed before its first event.
        ClientGone: the client closed the connection before it.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(events.put_nowait))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        first = await while_connected(request, events.get())
        if first is None:
            task.result()
    except BaseException:
        await _cancel(task)
        raise

    async def told() -> AsyncIterator[ServerSentEvent]:
        try:
            event = first
            while event is not None:
                for sent in tell(event):
                    yield sent
                event = await events.get()
            for sent in _ending(task, tell, last):
                yield sent
        finally:
            await _cancel(task)

    return EventSourceResponse(told())


def data(fields: dict[str, Any], event: str | None = None) -> ServerSentEvent:
    """One event with a JSON object."""
    return ServerSentEvent(json.dumps(fields, ensure_ascii=False, separators=(",", ":")), event=event)


def _ending(task: "asyncio.Future[Decoded]", tell: Told, last: Iterable[ServerSentEvent]) -> Iterator[ServerSentEvent]:
    try:
        yield from tell(task.result())
        yield from last
    except ServerError as error:
        yield data(error.envelope, "error")
    except Exception as error:
        yield data(unexpected(error, "a stream").envelope, "error")


async def _cancel(task: "asyncio.Future[Decoded]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
