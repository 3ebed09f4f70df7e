"""Describes calls that are refused before their route reads them, for the audit log."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.types import Receive, Scope

from infalign.controlled import ServedProcedure
from infalign.procedures import BestOfN, WorstOfN
from server.access.disclosure import Disclosure
from server.decoding.catalogue import Catalogue
from server.errors import ServerError
from server.middleware.audit import ProbeCall
from server.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    ControlledRequest,
    DecodingRequest,
    GenerationRequest,
)

WORST_OF_N = "/v1/worst-of-n"
BODIES: Mapping[str, type[GenerationRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/best-of-n": DecodingRequest,
    WORST_OF_N: DecodingRequest,
    "/v1/controlled": ControlledRequest,
}
"""Body models of the routes that decode."""
BODY_SECONDS = 5.0
"""How long a refusal waits for the body, in seconds."""


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Read a request body.

    Args:
        receive: The ASGI channel.
        limit: The largest body, in bytes.

    Returns:
        The body; None if it is larger than ``limit`` or does not arrive in time.
    """
    body = bytearray()
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while len(body) <= limit:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                body += message.get("body", b"")
                if not message.get("more_body"):
                    return bytes(body) if len(body) <= limit else None
    return None


def _read_procedure(path: str, body: GenerationRequest, catalogue: Catalogue) -> tuple[ServedProcedure, int | None]:
    if isinstance(body, DecodingRequest):
        kind = WorstOfN if path == WORST_OF_N else BestOfN
        return body.procedure(kind, catalogue.suffix_procedure(body.model)), None
    if isinstance(body, ControlledRequest):
        return body.procedure(catalogue.suffix_procedure(body.model), catalogue.block), body.n
    _, procedure, draws = body.drawing
    return procedure, draws


def describe_call(scope: Scope, catalogue: Catalogue, raw: bytes | None) -> ProbeCall | None:
    """Describe a refused call, if it takes the role ``probe``.

    The prompt is not rendered, so the description has no prompt key. Every request to the worst-of-n endpoint is such a
    call, even if its body is missing or not valid.

    Args:
        scope: The ASGI scope of the request.
        catalogue: The policies that are served.
        raw: The request body, if it is known.
    """
    path, key = scope["path"], scope["caller"].name
    try:
        body = BODIES[path].model_validate(json.loads(raw or b""))
        procedure, asked = _read_procedure(path, body, catalogue)
        choice = catalogue.choose(body.model, procedure)
        draws = choice.draws(procedure, asked)
    except (ValueError, RecursionError, ServerError):
        return ProbeCall(key, None, None, WorstOfN.family, None, None) if path == WORST_OF_N else None
    disclosure = Disclosure(choice.procedure, draws, body.top, body.return_candidates)
    if not (disclosure.is_worst_of_n or disclosure.unfiltered):
        return None
    return ProbeCall(key, body.user, choice.policy, str(choice.procedure), draws, None, disclosure.unfiltered)
