"""Streams server-sent events: first what happens to a job, then the answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.decoding.jobs import DecodingResult, Event
from server.errors import ServerError
from server.observability.failures import report_unexpected
from server.routes.disconnects import run_while_connected
from server.routes.results import render

LINE_END = "\n"  # the line end of OpenAI's streams
LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Unicode's line breaks. Some clients split a stream at them, so they are escaped, which JSON allows."""
Work = Callable[[Callable[[Event], None]], Coroutine[Any, Any, DecodingResult]]
"""Starts the work. It gets a function to call with every event."""
ToEvents = Callable[[Event | DecodingResult], Iterable[ServerSentEvent]]
"""Translates an event, or the result, to server-sent events."""
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""The OpenAPI description of answers that may be streams."""
DONE = ServerSentEvent("[DONE]", sep=LINE_END)
"""The end of OpenAI's streams."""


async def stream(
    request: Request,
    work: Work,
    to_events: ToEvents,
    last: Iterable[ServerSentEvent] = (),
    headers: Mapping[str, str] | None = None,
) -> EventSourceResponse:
    """Create the response that streams the events and the result of ``work``.

    The status line is sent with the first event, so an earlier failure is answered as an ordinary error. A later
    failure is sent as an event with the error's envelope. If the client disconnects, the work is cancelled.

    Args:
        request: The HTTP request.
        work: Starts the work.
        to_events: Translates events of the work, and its result.
        last: Events to send at the end.
        headers: Extra headers.

    Raises:
        ServerError: The work failed before its first event.
        ClientGone: The client disconnected before the first event.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(events.put_nowait))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        first = await run_while_connected(request, events.get())
        if first is None:
            task.result()
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise

    async def send() -> AsyncIterator[ServerSentEvent]:
        event = first
        try:
            while event is not None:
                for server_event in to_events(event):
                    yield server_event
                event = await events.get()
            result = task.result()
            for server_event in (*await render(result, lambda: list(to_events(result))), *last):
                yield server_event
        except ServerError as error:
            yield json_event(error.envelope, "error")
        except Exception as error:
            yield json_event(report_unexpected(error, "a stream").envelope, "error")

    return _Stream(send(), task, headers)


class _Stream(EventSourceResponse):
    """Cancels its work when it ends. A generator that never started would not run its own clean-up."""

    def __init__(
        self,
        events: AsyncIterator[ServerSentEvent],
        task: "asyncio.Future[DecodingResult]",
        headers: Mapping[str, str] | None,
    ) -> None:
        super().__init__(events, sep=LINE_END, headers=headers)
        self.task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.task.cancel()


def json_event(fields: dict[str, Any], event: str | None = None) -> ServerSentEvent:
    """Create a server-sent event with a JSON object.

    Args:
        fields: The JSON object.
        event: The event's name.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(LINE_BREAKS)
    return ServerSentEvent(text, event=event, sep=LINE_END)
