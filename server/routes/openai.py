"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``, as OpenAI's clients expect them."""

import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from infalign.procedures import BestOfN, FixedN, Standard, WorstOfN
from server.decoder import Conversation, Decoded
from server.protocol import Candidate, ChatRequest, CompletionRequest, OpenAIAnswer
from server.routes.common import Serving, calibration_info, conversation, serving, usage

router = APIRouter(prefix="/v1", tags=["openai"])
Server = Annotated[Serving, Depends(serving)]


@router.post("/chat/completions", response_model_exclude_none=True)
async def chat_completions(body: ChatRequest, request: Request, server: Server) -> OpenAIAnswer:
    """OpenAI chat completions with ``best_of`` or ``worst_of``."""
    limit = body.max_completion_tokens or body.max_tokens
    decoded, procedure = await _decode(body, request, server, conversation(body.messages), limit)
    choices = [
        {"index": place, "message": {"role": "assistant", "content": candidate.text}, **_standing(candidate)}
        for place, candidate in enumerate(decoded.ranked[: body.n])
    ]
    return _answer(body, server, decoded, procedure, choices, "chat.completion", "chatcmpl")


@router.post("/completions", response_model_exclude_none=True)
async def completions(body: CompletionRequest, request: Request, server: Server) -> OpenAIAnswer:
    """OpenAI text completions with ``best_of`` or ``worst_of``; ``best_of`` ranks by reward, not by log-probability."""
    decoded, procedure = await _decode(body, request, server, conversation(None, body.prompt), body.max_tokens)
    choices = [
        {"index": place, "text": candidate.text, **_standing(candidate)}
        for place, candidate in enumerate(decoded.ranked[: body.n])
    ]
    return _answer(body, server, decoded, procedure, choices, "text_completion", "cmpl")


@router.get("/models")
async def models(server: Server) -> dict[str, Any]:
    """The served policies."""
    cards = [{"id": name, "object": "model", "created": 0, "owned_by": "infalign"} for name in server.models]
    return {"object": "list", "data": cards}


async def _decode(
    body: ChatRequest | CompletionRequest, request: Request, server: Serving, asked: Conversation, limit: int | None
) -> tuple[Decoded, FixedN]:
    sampling = server.sampling(body, limit)
    procedure: FixedN
    if body.best_of is not None:
        field, drawn, procedure = "best_of", body.best_of, BestOfN(body.best_of)
    elif body.worst_of is not None:
        field, drawn, procedure = "worst_of", body.worst_of, WorstOfN(body.worst_of)
    else:
        field, drawn, procedure = "n", body.n, Standard()
    server.check_n(field, drawn)
    return await server.decode(request, asked, procedure, sampling, drawn), procedure


def _standing(candidate: Candidate) -> dict[str, Any]:
    """A choice's finish reason, and where its reward stands (fields that OpenAI does not have)."""
    fields = {"finish_reason", "reward", "quantile", "quantile_low", "quantile_high", "seed"}
    if candidate.rewards:
        fields.add("rewards")
    return {"logprobs": None, **candidate.model_dump(include=fields)}


def _answer(
    body: ChatRequest | CompletionRequest,
    server: Serving,
    decoded: Decoded,
    procedure: FixedN,
    choices: list[dict[str, Any]],
    kind: Literal["chat.completion", "text_completion"],
    prefix: str,
) -> OpenAIAnswer:
    return OpenAIAnswer(
        id=f"{prefix}-{uuid4().hex}",
        object=kind,
        created=int(time.time()),
        model=server.model(body.model),
        choices=choices,
        usage=usage(decoded),
        procedure=str(procedure),
        calibration=calibration_info(decoded.calibration),
        candidates=decoded.in_drawn_order if body.return_candidates else None,
    )
