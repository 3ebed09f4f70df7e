"""What a client can be told, each with its status and OpenAI-style envelope.

ServerError
├── BadRequest (400)            a field that is not accepted
│   ├── PromptTooLong (400)     prompt and response do not fit the context
├── UnknownModel (404)
└── Unavailable (503)           engines not up yet, or gone
"""

from typing import Any

from infalign.errors import InfAlignError


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


class BadRequest(ServerError):
    """A field that is not accepted."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class PromptTooLong(BadRequest):
    """Prompt and response do not fit the context."""

    code = "context_length_exceeded"


class UnknownModel(ServerError):
    """A model this server does not serve."""

    status, type, code = 404, "invalid_request_error", "model_not_found"


class Unavailable(ServerError):
    """The engines are not up yet, or gone."""

    status, type, code = 503, "server_error", "not_ready"
