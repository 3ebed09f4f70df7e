"""Handling of unexpected errors: the log says where they happened, the client that there was one."""

import logging
import traceback

from server.errors import DeadlineExceeded, ServerError

log = logging.getLogger("infalign.server")


def report_unexpected(error: BaseException, place: str) -> ServerError:
    """Log an unexpected error.

    The log gets the types of the error and its causes, and their tracebacks. It does not get their messages, because a
    library may quote prompts and responses in them.

    Args:
        error: The error.
        place: Where it happened, such as a request line.

    Returns:
        The error for the client.
    """
    lines, link = [], error
    ids: set[int] = set()
    while link is not None and id(link) not in ids:
        ids.add(id(link))
        lines += [f"{type(link).__module__}.{type(link).__qualname__}\n", *traceback.format_tb(link.__traceback__)]
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    log.error("unexpected error in %s: %s", place, "".join(lines).rstrip())
    return ServerError("internal error; the server's log has it")


def failure_code(failure: BaseException) -> str:
    """Return the error code that a candidate's failure is counted under. Log the failure if it is unexpected."""
    if isinstance(failure, TimeoutError):
        return DeadlineExceeded.code
    return (failure if isinstance(failure, ServerError) else report_unexpected(failure, "a candidate")).code
