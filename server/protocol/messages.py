"""The chat messages or the raw prompt of a request."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from server.protocol.fields import Body, Encodable, Ignored, Text, Unsupported


class TextPart(Body):
    """A part of a message's content. Only text is supported."""

    type: Literal["text"]
    text: Text
    cache_control: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            raise ValueError('a part {"type": "text", "text": ...}; no other type is understood')
        return part


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is read as system")
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]
    type: Literal["text"] | None = Field(None, exclude=True, description="accepted and ignored")
    name: Ignored = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    reasoning: Unsupported = None
    reasoning_content: Unsupported = None
    refusal: Unsupported = None
    tool_call_id: Unsupported = None
    tool_calls: Unsupported = None

    @property
    def template_message(self) -> dict[str, str]:
        """The message in the form that chat templates expect."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


def _check_last_turn(messages: list[Message]) -> list[Message]:
    if messages[-1].role == "assistant":
        raise ValueError("a last turn that is not the assistant's; to continue a text, send it to /v1/completions")
    return messages


def _unwrap_prompt(value: Any) -> Any:
    """Unwrap a list of one text. OpenAI's clients may send lists of prompts or of token ids."""
    if not isinstance(value, list):
        return value
    if len(value) != 1 or not isinstance(value[0], str):
        raise ValueError("one text, alone or in a list: a request has one prompt, and token ids are not understood")
    return value[0]


Messages = Annotated[
    list[Message],
    Field(
        min_length=1,
        max_length=4096,
        description="the conversation; its last turn must not be the assistant's "
        "(to continue a text, send it to /v1/completions)",
    ),
    AfterValidator(_check_last_turn),
]
Prompt = Annotated[
    str,
    Field(min_length=1, description="raw text to continue, no chat template applied; a list of one text is that text"),
    Encodable,
    BeforeValidator(
        _unwrap_prompt,
        json_schema_input_type=Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1)],
    ),
]


class MessagesOrPrompt(Body):
    """A request with either messages or a prompt."""

    messages: Messages | None = None
    prompt: Prompt | None = Field(None, validate_default=True)

    @field_validator("prompt")
    @classmethod
    def _check_exactly_one(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if "messages" in info.data and (info.data["messages"] is None) == (prompt is None):
            raise ValueError("exactly one of messages and prompt")
        return prompt
