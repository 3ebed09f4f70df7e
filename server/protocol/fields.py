"""The base class of request bodies, and types of their fields."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MAX_EXACT = 2**53
"""Up to this number, every integer is exact as a float."""


class Body(BaseModel):
    """Base class of request bodies. Unknown fields are errors.

    A field that is null counts as left out, and 16.0 as 16.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: _to_integer(value) for key, value in data.items() if value is not None}


def _to_integer(value: Any) -> Any:
    """Return a float without a fraction as an integer, which every numeric field accepts."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT else value


def check_encodable(data: Any) -> Any:
    """Refuse half of a surrogate pair. JSON can contain it, but no tokenizer and no UTF-8 text can."""
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text of whole characters (a lone surrogate at {error.start})") from error
    return data


def _check_empty(value: Any) -> Any:
    if value not in ("", [], {}):
        raise ValueError("no value: this server does not support it")
    return value


def _check_calibrate(value: Any) -> Any:
    if not (isinstance(value, bool) or value == "predict"):
        raise ValueError("true, false or predict")
    return value


Encodable = BeforeValidator(check_encodable)
Text = Annotated[str, Encodable]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A positive integer that fits 32 bits."""
Calibrate = Annotated[bool | Literal["predict"], BeforeValidator(_check_calibrate)]
"""Whether a prompt that is not calibrated is calibrated first, by draws from the reference, or only predicted."""
Ignored = Annotated[Any, Field(exclude=True, description="accepted and ignored")]
"""A field that OpenAI's clients send and that does not change the response."""
Unsupported = Annotated[
    Any,
    AfterValidator(_check_empty),
    WithJsonSchema({"enum": [None, "", [], {}]}),
    Field(exclude=True, description="not supported: accepted only where it is empty"),
]
"""A field that would change the response. It is accepted only if it is empty."""
