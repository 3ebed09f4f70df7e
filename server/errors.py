"""The errors that clients can see. Each has an HTTP status and an OpenAI-style envelope.

ServerError
├── BadRequest (400)            a request field is not accepted
│   ├── PromptTooLong (400)     prompt and response do not fit the context
│   ├── NoAnswer (400)          reasoning did not end before the length limit
│   └── Unreadable (400)        the bytes are not a valid HTTP request
├── Unauthorized (401)          the API key is missing or not valid
├── Forbidden (403)             the API key lacks a role
├── UnknownModel (404)          the model is not served
├── TooSlow (408)               the body arrives too slowly
├── TooLarge (413)              the body is too large
├── Misdirected (421)           the Host header names another server
├── HeadersTooLarge (431)       the headers are too large
├── Overloaded (429)            the server or the key is at its limit of requests
├── EngineError (502)           a live engine failed at this request
├── Unavailable (503)           the engines are not up
└── DeadlineExceeded (504)      the request ran out of time
"""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from infalign.errors import InfAlignError

CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client has disconnected before the answer, as in nginx's log."""


class ServerError(InfAlignError):
    """Base class of errors that clients see. Subclasses set the status, type and code of the envelope.

    Args:
        message: What went wrong, for the client.
        param: The request field at fault, if there is one.
    """

    status, type, code = 500, "server_error", "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def envelope(self) -> dict[str, Any]:
        """The JSON body of the answer, in OpenAI's form."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Extra headers of the answer."""
        return {}

    @property
    def response(self) -> JSONResponse:
        """The complete HTTP response."""
        return JSONResponse(self.envelope, self.status, headers=dict(self.headers))


class BadRequest(ServerError):
    """A request field has a value that is not accepted."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class PromptTooLong(BadRequest):
    """Prompt and response do not fit the context window."""

    code = "context_length_exceeded"


class NoAnswer(BadRequest):
    """The reasoning of responses did not end before the length limit, so they have no answer."""

    code = "no_answer"


class Unreadable(BadRequest):
    """The client sent bytes that are not a valid HTTP request, or two lengths of the body."""

    def __init__(self) -> None:
        super().__init__("request: not HTTP, accepted: a request line, headers with Host, one length of the body")

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Connection": "close"}


class Unauthorized(ServerError):
    """The request has no API key, or one that is not in the keys file."""

    status, type, code = 401, "authentication_error", "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServerError):
    """The API key lacks the role that the request needs."""

    status, type, code = 403, "permission_error", "missing_role"


class UnknownModel(ServerError):
    """The request names a model that this server does not serve."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class TooSlow(ServerError):
    """The body arrives too slowly."""

    status, type, code = 408, "invalid_request_error", "request_timeout"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Connection": "close"}


class TooLarge(ServerError):
    """The body is larger than the server reads."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class HeadersTooLarge(ServerError):
    """The headers are larger than the server reads.

    Args:
        kib: The limit, in KiB.
    """

    status, type, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self, kib: int) -> None:
        super().__init__(f"headers: got more, accepted: at most {kib} KiB with the request line (--max-header-kib)")


class Misdirected(ServerError):
    """The ``Host`` header is not a name of this server."""

    status, type, code = 421, "invalid_request_error", "unknown_host"


class Overloaded(ServerError):
    """The server or the API key has reached its limit of requests.

    Args:
        message: Which limit was reached.
        retry_after: Seconds after which the client may try again.
    """

    status, type, code = 429, "rate_limit_error", "overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class EngineError(ServerError):
    """An engine is alive but failed at this request."""

    status, type, code = 502, "server_error", "engine_error"


class Unavailable(ServerError):
    """The engines are not up yet, or have died."""

    status, type, code = 503, "server_error", "not_ready"


class DeadlineExceeded(ServerError):
    """The request was not finished within its time."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"
