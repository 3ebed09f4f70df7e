"""Explains why a request body could not be read as JSON."""

from email.message import Message

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from server.errors import BadRequest

ACCEPTED = "accepted: application/json, in UTF-8 and not compressed"


def content_error(request: Request, error: RequestValidationError | HTTPException) -> BadRequest | None:
    """Create the error for a body that FastAPI could not parse as JSON.

    The message repeats nothing of the body.

    Args:
        request: The request.
        error: FastAPI's error.

    Returns:
        The error for the client; None if ``error`` is about something else.
    """
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return BadRequest(f"body: not JSON ({first['ctx']['error']}), accepted: a JSON object", "body")
        # FastAPI passes a body on as bytes if its content type is not JSON.
        if isinstance(error.body, bytes) and not _is_json(content_type := request.headers.get("content-type", "")):
            return BadRequest(f"content-type: got {content_type[:80] or 'none'!r}, {ACCEPTED}", "content-type")
        return None
    cause = error.__cause__
    if error.status_code != BadRequest.status or cause is None or isinstance(cause, ClientDisconnect):
        return None
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        return BadRequest(f"content-encoding: got {encoding[:80]!r}, {ACCEPTED}", "content-encoding")
    if isinstance(cause, UnicodeDecodeError):
        return BadRequest(f"body: not {cause.encoding.upper()} from byte {cause.start} on, {ACCEPTED}", "body")
    if isinstance(cause, RecursionError):
        return BadRequest("body: nested too deeply, accepted: a JSON object of a few levels", "body")
    if isinstance(cause, ValueError):
        return BadRequest("body: a number of more digits than are read, accepted: a JSON object", "body")
    return None


def _is_json(content_type: str) -> bool:
    """Decide as FastAPI does."""
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
