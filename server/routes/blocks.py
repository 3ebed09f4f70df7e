"""Checks that a request can be decoded block by block."""

from infalign.controlled import Controlled
from server.decoding.reader import Conversation
from server.errors import BadRequest
from server.protocol.requests import GenerationRequest
from server.routes.serving import Serving

UNDONE = ("presence_penalty", "frequency_penalty")
"""Fields that engines apply to one response: each block would begin anew."""


def check_controlled(
    serving: Serving,
    body: GenerationRequest,
    conversation: Conversation,
    procedure: Controlled,
    answers: int,
    field: str,
) -> None:
    """Check that a request can be decoded block by block, and how many continuations it draws at a time.

    Args:
        serving: The objects that serve requests.
        body: The request's body.
        conversation: The messages or the prompt in the body.
        procedure: The procedure.
        answers: The number of answers.
        field: The body's field that sets K.

    Raises:
        BadRequest: A field has a value with which blocks would not make the answer that it asks for, or K continuations
            of so many answers exceed the operator's limit.
    """
    serving.check_n(field, procedure.k)
    if answers * procedure.k > serving.settings.max_n:
        most = serving.settings.max_n // procedure.k
        raise BadRequest(f"n: got {answers} with {procedure}, accepted: at most {most}", "n")
    for name in UNDONE:
        if value := getattr(body, name):
            raise BadRequest(f"{name}: got {value:g}, accepted: 0 with {procedure}", name)
    if body.response_format is not None and body.response_format.type != "text":
        kind = body.response_format.type
        raise BadRequest(f"response_format: got {kind}, accepted: text with {procedure}", "response_format")
    if conversation.tools:
        raise BadRequest(f"tools: got a list of {len(conversation.tools)}, accepted: none with {procedure}", "tools")
    if conversation.messages and serving.settings.reasoning_parser is not None:
        raise BadRequest(
            f"messages: got {procedure}, accepted: another procedure, or a prompt, as this server separates reasoning "
            "from answers (--reasoning-parser)",
            "messages",
        )
