"""Server-sent events: what happens to a job, told as it happens, and the answer at the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.decoder import Decoded, Event
from server.errors import ServerError
from server.failures import unexpected
from server.routes.common import beside, while_connected

LINE = "\n"  # what OpenAI's streams end their lines with
LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Characters that Unicode ends lines at, and clients that read a stream line by line; JSON may escape them."""
Work = Callable[[Callable[[Event], None]], Coroutine[Any, Any, Decoded]]
Told = Callable[[Event | Decoded], Iterable[ServerSentEvent]]
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""What a schema says of answers that may be streams."""
DONE = ServerSentEvent("[DONE]", sep=LINE)
"""Ends OpenAI's streams."""


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
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise

    async def told() -> AsyncIterator[ServerSentEvent]:
        event = first
        try:
            while event is not None:
                for sent in tell(event):
                    yield sent
                event = await events.get()
            decoded = task.result()
            for sent in (*await beside(decoded, lambda: list(tell(decoded))), *last):
                yield sent
        except ServerError as error:
            yield data(error.envelope, "error")
        except Exception as error:
            yield data(unexpected(error, "a stream").envelope, "error")

    return _Stream(told(), task)


class _Stream(EventSourceResponse):
    """Ends its work however it ends itself: a generator that never began has no clean-up of its own."""

    def __init__(self, told: AsyncIterator[ServerSentEvent], task: "asyncio.Future[Decoded]") -> None:
        super().__init__(told, sep=LINE)
        self.task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.task.cancel()


def data(fields: dict[str, Any], event: str | None = None) -> ServerSentEvent:
    """One event with a JSON object.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot say.
    """
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(LINE_ENDS)
    return ServerSentEvent(text, event=event, sep=LINE)
