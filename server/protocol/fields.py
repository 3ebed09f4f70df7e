"""What bodies of requests are made of: the base of them all, and kinds of fields."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

EXACT = 2**53
"""Up to here every whole number is a float too."""


class Body(BaseModel):
    """Unknown fields are errors. A field that is null counts as left out, and 16.0 as 16."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: _whole(value) for key, value in given.items() if value is not None}


def _whole(value: Any) -> Any:
    """A number without a fraction as an integer, which every field for numbers takes."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT else value


def _encodable(given: Any) -> Any:
    """JSON can carry half a surrogate pair, which no tokenizer and no UTF-8 can."""
    if isinstance(given, str):
        try:
            given.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text of whole characters (a lone surrogate at {error.start})") from error
    return given


def _empty(value: Any) -> Any:
    if value not in ("", [], {}):
        raise ValueError("no value: this server does not support it")
    return value


Encodable = BeforeValidator(_encodable)
Text = Annotated[str, Encodable]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Ignored = Annotated[Any, Field(exclude=True, description="accepted and ignored")]
"""A field that OpenAI's clients send and that changes no text."""
Unsupported = Annotated[
    Any,
    AfterValidator(_empty),
    WithJsonSchema({"enum": [None, "", [], {}]}),
    Field(exclude=True, description="not supported: accepted only where it is empty"),
]
"""A field that would change the text, or be part of it, if it said anything."""
