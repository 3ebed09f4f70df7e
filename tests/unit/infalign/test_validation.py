"""What is written of a value that pydantic refused."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infalign.validation import explain


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Part(_Strict):
    kind: Literal["text"]
    text: str


class Entry(_Strict):
    key: int = 0


class Body(_Strict):
    content: str | Annotated[list[Part], Field(max_length=2)] = ""
    both: int | list[int] | None = None
    entries: dict[str, Entry] = {}
    size: int = Field(1, ge=1)
    stream: bool = False
    storage: Any = Field(None, exclude=True)
    renamed: int = Field(0, alias="as")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "size: got 0, accepted: greater than or equal to 1"),
        ({"content": 5}, "content: got 5, accepted: a valid string or a valid list"),
        ({"both": "x"}, "both: got 'x', accepted: a valid integer or a valid list"),
        ({"both": ["x"]}, "both.0: got 'x', accepted: a valid integer"),
        ({"content": ["x"]}, "content.0: got 'x', accepted: a valid dictionary or instance of Part"),
        ({"content": [{"kind": "image", "text": ""}]}, "content.0.kind: got 'image', accepted: 'text'"),
        ({"content": [{"kind": "text"}]}, "content.0.text: got None, accepted: this field is required"),
        ({"content": [{}, {}, {}]}, "content: got [{}, {}, {}], accepted: at most 2 items, not 3"),
        (
            {"content": [{"kind": "text", "text": "", "url": 1}]},
            "content.0.url: got 1, accepted: no such key; known: kind, text",
        ),
        (
            {"content": [{"kind": "text", "texd": ""}]},
            "content.0.texd: got '', accepted: no such key; did you mean text?",
        ),
        ({"entries": {"size": {"keyy": 1}}}, "entries.size.keyy: got 1, accepted: no such key; did you mean key?"),
        # `store` is as near to `stream` as 0.73, and the field that is not kept is suggested to nobody.
        (
            {"store": 1},
            "store: got 1, accepted: no such key; known: content, both, entries, size, stream, as",
        ),
        ({"list[int]": 1}, "list[int]: got 1, accepted: no such key; known: content, both, entries, size, stream, as"),
        ({"sise": 2, "size": 0}, "sise: got 2, accepted: no such key; did you mean size?"),
        ({"as": "x"}, "as: got 'x', accepted: a valid integer"),
    ],
)
def test_the_field_the_value_and_what_is_accepted_are_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Body.model_validate(given)
    assert str(explain(refused.value.errors(), Body)) == message


def test_long_values_and_names_are_cut() -> None:
    with pytest.raises(ValidationError) as refused:
        Body.model_validate({"x" * 1000: "y" * 1000})
    found = explain(refused.value.errors(), Body)
    assert len(str(found)) < 400
    assert found.param in str(found)
