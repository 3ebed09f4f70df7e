"""Errors nobody expected: the client gets a plain 500, the log where it happened."""

import logging
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import DeadlineExceeded, ServerError

log = logging.getLogger("infalign.server")


def unexpected(error: BaseException, during: str) -> ServerError:
    """Log the types of ``error`` and its causes, and where they were raised; what the client is told.

    Their messages are left out: a library's may quote prompts and responses.
    """
    lines, link = [], error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        lines += [f"{type(link).__module__}.{type(link).__qualname__}\n", *traceback.format_tb(link.__traceback__)]
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    log.error("unexpected error in %s: %s", during, "".join(lines).rstrip())
    return ServerError("internal error; the server's log has it")


def code_of(failure: BaseException) -> str:
    """The code that a candidate's failure is counted under; one that nobody expected is logged."""
    if isinstance(failure, TimeoutError):
        return DeadlineExceeded.code
    return (failure if isinstance(failure, ServerError) else unexpected(failure, "a candidate")).code


class Contain:
    """Answers where the application raises, so that no server above it logs the error with its message. Plain ASGI.

    An answer that has begun is left unfinished, upon which the server closes the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            told = unexpected(error, f"{scope['method']} {scope['path']}")
            if not begun:
                await told.response(scope, receive, send)
