"""Calls that are refused before their route has read them, so that the audit log has those too."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.types import Receive, Scope

from infalign.procedures import BestOfN, FixedN, WorstOfN
from server.access.disclosure import Disclosure
from server.audit import Call
from server.catalogue import Catalogue
from server.errors import ServerError
from server.protocol.requests import ChatRequest, CompletionRequest, DecodingRequest, Drawing

WORST = "/v1/worst-of-n"
BODIES: Mapping[str, type[Drawing]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/best-of-n": DecodingRequest,
    WORST: DecodingRequest,
}
"""What the routes that decode read."""
SECONDS = 5.0
"""How long a refusal waits for the body."""


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """A body of up to ``limit`` bytes; None if it is larger, or does not come."""
    body = bytearray()
    with suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            while len(body) <= limit:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                body += message.get("body", b"")
                if not message.get("more_body"):
                    return bytes(body) if len(body) <= limit else None
    return None


def _drawing(path: str, body: Drawing, catalogue: Catalogue) -> tuple[FixedN, int]:
    if isinstance(body, DecodingRequest):
        kind = WorstOfN if path == WORST else BestOfN
        procedure: FixedN = body.procedure(kind, catalogue.procedure_of(body.model))
        return procedure, procedure.n
    _, procedure, draws = body.drawing
    return procedure, draws


def describe_call(scope: Scope, catalogue: Catalogue, raw: bytes | None) -> Call | None:
    """The call that a refused request would have been, if it takes the role ``probe``; ``raw`` is its body.

    Its prompt is not rendered. Of the endpoint for worst-of-n every request is such a call, even if it has no body or
    one that is not accepted.
    """
    path, key = scope["path"], scope["caller"].name
    try:
        body = BODIES[path].model_validate(json.loads(raw or b""))
        procedure, draws = _drawing(path, body, catalogue)
        choice = catalogue.choose(body.model, procedure)
    except (ValueError, RecursionError, ServerError):
        return Call(key, None, None, WorstOfN.family, None, None) if path == WORST else None
    draws = draws if choice.procedure == procedure else choice.procedure.n
    disclosure = Disclosure(choice.procedure, draws, body.top, body.return_candidates)
    if not (disclosure.worst or disclosure.unfiltered):
        return None
    return Call(key, body.user, choice.policy, str(choice.procedure), draws, None, disclosure.unfiltered)
