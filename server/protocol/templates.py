"""Tools, calls of tools, and variables: what chat templates read beside the text of messages."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from server.protocol.fields import Body, Encodable, Ignored, Text
from server.protocol.schemas import check_text

MAX_TOOLS = 128
"""The most tools of a request, and the most calls of a turn."""
RESERVED = frozenset(
    {
        *("messages", "conversation", "conversations", "tools", "chat_template", "tokenize", "tokenizer_kwargs"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "strftime_now", "raise_exception"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    }
)
"""Variables of chat templates that the server and the tokenizer set themselves."""
FunctionName = Annotated[str, Field(min_length=1, max_length=256), Encodable]


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Refuse variables that are too large or that the server sets itself."""
    for name in variables:
        if name in RESERVED:
            raise ValueError(f"variables other than {name}, which the server sets itself")
    check_text(variables, "variables")
    return variables


def _parse_arguments(arguments: Any) -> Any:
    """Parse the arguments of a call, as chat templates expect an object.

    Arguments that are no JSON object become an empty one, as in vLLM. They come from an earlier answer. An error would
    end the conversation, since the client sends that answer again with every request.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {}
    return arguments if isinstance(arguments, dict) else {}


def _check_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    check_text(arguments, "arguments")
    return arguments


def _check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    check_text(parameters, "a schema")
    return parameters


TemplateVariables = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], Any], AfterValidator(_check_variables)
]


class Function(Body):
    """A function that an answer may call."""

    name: FunctionName
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_check_parameters)] | None = Field(
        None, description="JSON schema of the arguments; calls are not held to it"
    )
    strict: bool | None = Field(None, exclude=True, description="accepted and ignored")


class Tool(Body):
    """A tool. Only functions are supported."""

    type: Literal["function"]
    function: Function


class PastFunctionCall(Body):
    """The function that was called, with its arguments."""

    name: FunctionName
    arguments: Annotated[
        dict[str, Any],
        BeforeValidator(_parse_arguments, json_schema_input_type=str),
        AfterValidator(_check_arguments),
    ] = Field({}, description="JSON object as text; anything else is read as an empty object")
    parsed_arguments: Ignored = None


class PastCall(Body):
    """A call that an earlier answer made."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: PastFunctionCall
    index: Ignored = None
