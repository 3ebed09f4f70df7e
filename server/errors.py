"""What a client can be told, each with its status and OpenAI-style envelope.

ServerError
├── BadRequest (400)            a field that is not accepted
│   └── PromptTooLong (400)     prompt and response do not fit the context
├── Unauthorized (401)          no key, or one that is not known
├── Forbidden (403)             a key without the role that this takes
├── UnknownModel (404)
├── TooLarge (413)              a body of more bytes than are read
├── Overloaded (429)            more at a time, or in a time, than this server or this key may
├── EngineError (502)           a live engine failed at this request, or at a candidate of it
├── Unavailable (503)           engines not up yet, or gone
└── DeadlineExceeded (504)      not done in the time the request had
"""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from infalign.errors import InfAlignError

CLIENT_CLOSED_REQUEST = 499
"""The status of what nobody waited for."""


class ServerError(InfAlignError):
    """Base; subclasses give status, type and code of the envelope."""

    status, type, code = 500, "server_error", "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def envelope(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the answer."""
        return {}

    @property
    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.envelope, self.status, headers=dict(self.headers))


class BadRequest(ServerError):
    """A field that is not accepted."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class PromptTooLong(BadRequest):
    """Prompt and response do not fit the context."""

    code = "context_length_exceeded"


class Unauthorized(ServerError):
    """No key, or one that is not known."""

    status, type, code = 401, "authentication_error", "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServerError):
    """A key without the role that this takes."""

    status, type, code = 403, "permission_error", "missing_role"


class UnknownModel(ServerError):
    """A model this server does not serve."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class TooLarge(ServerError):
    """A body of more bytes than are read."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class Overloaded(ServerError):
    """More at a time, or in a time, than this server or this key may."""

    status, type, code = 429, "rate_limit_error", "overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class EngineError(ServerError):
    """A live engine failed at this request, or at a candidate of it."""

    status, type, code = 502, "server_error", "engine_error"


class Unavailable(ServerError):
    """The engines are not up yet, or gone."""

    status, type, code = 503, "server_error", "not_ready"


class DeadlineExceeded(ServerError):
    """Not done in the time the request had."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"
