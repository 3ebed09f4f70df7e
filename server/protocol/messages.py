"""The chat messages or the raw prompt of a request."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from server.protocol.fields import Body, Encodable, Ignored, Text, Unsupported, check_encodable
from server.protocol.templates import MAX_TOOLS, PastCall, TemplateVariables, Tool

REASONING_KEYS = ("reasoning", "reasoning_content")
"""Keys under which chat templates look for the reasoning of an earlier answer. They differ between models."""
MESSAGE_FIELDS = ("tools", "chat_template_kwargs", "continue_final_message")
"""Fields that a raw prompt cannot have."""


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

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="developer is read as system")
    tool_calls: Annotated[list[PastCall], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="calls that an earlier answer made; only of the assistant"
    )
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024)] | None = Field(
        None, validate_default=True, description="may be left out of a turn with tool_calls"
    )
    type: Literal["text"] | None = Field(None, exclude=True, description="accepted and ignored")
    name: Annotated[Any, Field(description="passed on in the role tool, otherwise ignored")] = None
    tool_call_id: Text | None = Field(None, description="the call that is answered; only in the role tool")
    reasoning: Text | None = Field(None, description="thoughts of an earlier answer; only of the assistant")
    reasoning_content: Text | None = Field(None, description="another name of reasoning")
    parsed: Ignored = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    refusal: Unsupported = None

    @field_validator("tool_calls", "tool_call_id", "reasoning", "reasoning_content", mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        return None if value in ("", [], {}) else value

    @field_validator("tool_calls", "reasoning", "reasoning_content")
    @classmethod
    def _check_assistant(cls, value: Any, info: ValidationInfo) -> Any:
        return _check_role(value, info, "assistant")

    @field_validator("tool_call_id")
    @classmethod
    def _check_tool(cls, value: Any, info: ValidationInfo) -> Any:
        return _check_role(value, info, "tool")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: Any, info: ValidationInfo) -> str | None:
        """Keep the name of a tool, and ignore any other."""
        is_used = info.data.get("role") == "tool" and isinstance(name, str)
        return check_encodable(name) if is_used else None

    @field_validator("content")
    @classmethod
    def _check_content(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and not info.data.get("tool_calls") and "tool_calls" in info.data:
            raise ValueError("text, or a list of text parts; only a turn with tool_calls may be without")
        return content

    @property
    def template_message(self) -> dict[str, Any]:
        """The message in the form that chat templates expect."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        if reasoning := self.reasoning or self.reasoning_content:
            message |= dict.fromkeys(REASONING_KEYS, reasoning)
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message


def _check_role(value: Any, info: ValidationInfo, role: str) -> Any:
    if value is not None and info.data.get("role", role) != role:
        raise ValueError(f"nothing, except in the role {role}")
    return value


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
        description="the conversation; its last turn must not be the assistant's, unless continue_final_message is set",
    ),
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


def check_last_turn(messages: Sequence[Message], continued: bool) -> None:
    """Check that an answer can follow a conversation.

    Args:
        messages: The conversation.
        continued: Whether the answer continues the last turn.

    Raises:
        ValueError: It cannot.
    """
    last = messages[-1]
    if not continued and last.role == "assistant":
        raise ValueError(
            "a last turn that is not the assistant's, unless it is to be continued "
            "(continue_final_message: true, add_generation_prompt: false)"
        )
    if continued and (last.role != "assistant" or last.tool_calls):
        raise ValueError("a last turn of the assistant's, without tool_calls, for continue_final_message")


class ChatFields(Body):
    """Fields that say how messages become a prompt."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(
        [], description="functions that the answer may call; needs a server with --tool-parser"
    )
    tool_choice: Literal["none", "auto"] = Field("auto", description="with none, the tools are left out of the prompt")
    parallel_tool_calls: bool = Field(True, description="with false, only the first call of an answer is kept")
    chat_template_kwargs: TemplateVariables = Field(
        {}, description="variables of the policy's chat template, such as enable_thinking"
    )
    add_generation_prompt: bool = Field(
        True, description="must be false with continue_final_message: true, and only then"
    )
    continue_final_message: bool = Field(
        False,
        validate_default=True,
        description="continue the last turn, which is the assistant's; takes add_generation_prompt: false",
    )

    @field_validator("tools", mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        return [] if value in ("", {}) else value

    @field_validator("continue_final_message")
    @classmethod
    def _check_continuation(cls, continued: bool, info: ValidationInfo) -> bool:
        if info.data.get("add_generation_prompt", not continued) == continued:
            raise ValueError("true with add_generation_prompt: false, and only then")
        return continued

    @field_validator("messages", check_fields=False)
    @classmethod
    def _check_last_turn(cls, messages: list[Message] | None, info: ValidationInfo) -> list[Message] | None:
        if messages is not None and "continue_final_message" in info.data:
            check_last_turn(messages, info.data["continue_final_message"])
        return messages

    @property
    def offered_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools in the form that chat templates expect; none if none may be called."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool.model_dump(exclude_unset=True) for tool in self.tools)


class MessagesOrPrompt(ChatFields):
    """A request with either messages or a prompt."""

    messages: Messages | None = None
    prompt: Prompt | None = Field(None, validate_default=True)

    @field_validator("prompt")
    @classmethod
    def _check_exactly_one(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if "messages" in info.data and (info.data["messages"] is None) == (prompt is None):
            raise ValueError("exactly one of messages and prompt")
        if prompt is not None and any(info.data.get(field) for field in MESSAGE_FIELDS):
            raise ValueError(f"no prompt beside {', '.join(MESSAGE_FIELDS)}, which belong to messages")
        return prompt
