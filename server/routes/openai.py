"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``, as OpenAI's clients expect them."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from infalign.errors import shorten
from infalign.procedures import Standard
from server.auth import authenticated, needs
from server.choices import Chat, Chunks, Form, Text, choices
from server.decoder import Decoded, Event, Job
from server.decoding.reader import Conversation
from server.errors import UnknownModel
from server.protocol.answers import ModelCard, ModelsAnswer, OpenAIAnswer
from server.protocol.requests import ChatRequest, CompletionRequest
from server.routes.common import (
    Server,
    Serving,
    beside,
    conversation,
    json_answer,
    selection,
    side,
    usage,
    while_connected,
)
from server.streaming import DONE, STREAMED, data, stream

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(authenticated)])
GENERATES: dict[str, Any] = {
    "dependencies": [needs("generate")],
    "response_model": OpenAIAnswer,
    "responses": STREAMED,
}


@router.post("/chat/completions", **GENERATES)
async def chat_completions(body: ChatRequest, request: Request, server: Server) -> Response:
    """OpenAI chat completions with ``best_of`` or ``worst_of``."""
    limit = body.max_completion_tokens or body.max_tokens
    return await _answer(body, request, server, conversation(body.messages), limit, Chat())


@router.post("/completions", **GENERATES)
async def completions(body: CompletionRequest, request: Request, server: Server) -> Response:
    """OpenAI text completions with ``best_of`` or ``worst_of``; ``best_of`` ranks by reward, not by log-probability."""
    return await _answer(body, request, server, conversation(None, body.prompt), body.max_tokens, Text())


@router.get("/models")
async def models(server: Server) -> ModelsAnswer:
    """The served policies, alone and with a procedure behind the name."""
    return ModelsAnswer(data=[ModelCard(id=name) for name in server.catalogue.names(server.settings.max_n)])


@router.get("/models/{name}")
async def model(name: str, server: Server) -> ModelCard:
    """One of them, or any other name that requests may have as their ``model``."""
    n = server.catalogue.choose(name, Standard()).procedure.n
    if n > server.settings.max_n:
        raise UnknownModel(f"model: got {shorten(name)}, accepted: N of at most {server.settings.max_n}", "model")
    return ModelCard(id=name)


async def _answer(
    body: ChatRequest | CompletionRequest,
    request: Request,
    server: Serving,
    asked: Conversation,
    limit: int | None,
    form: Form,
) -> Response:
    job = await _job(request, body, server, asked, limit)
    head = {
        "id": f"{form.prefix}-{uuid4().hex}",
        "created": int(time.time()),
        "model": job.sampling.policy,
    }
    if body.stream:
        return await _stream(body, request, server, job, form, head)
    decoded = await while_connected(request, server.decode(request, job))
    chosen = selection(job, decoded)

    def answer() -> Response:
        return json_answer(
            OpenAIAnswer(
                **head,
                object=form.whole,
                choices=choices(form, chosen),
                usage=usage(decoded),
                **side(body, job, decoded),
            )
        )

    return await beside(decoded, answer)


async def _stream(
    body: ChatRequest | CompletionRequest,
    request: Request,
    server: Serving,
    job: Job,
    form: Form,
    head: dict[str, Any],
) -> EventSourceResponse:
    chunks = Chunks(form, head, isinstance(job.procedure, Standard), job.sees_all, body.return_candidates)

    def tell(event: Event | Decoded) -> Iterator[ServerSentEvent]:
        if not isinstance(event, Decoded):
            yield from map(data, chunks.of(event))
            return
        *parts, last = chunks.end(selection(job, event))
        yield from map(data, parts)
        beyond = side(body, job, event)
        answer = OpenAIAnswer(**head, object=form.whole, choices=[], usage=usage(event), **beyond)
        yield data(last | answer.model_dump(include=set(beyond), exclude_none=True))
        if body.stream_options and body.stream_options.include_usage:
            yield data({**head, "object": form.part, "choices": [], "usage": usage(event).model_dump()})

    return await stream(request, lambda listen: server.decode(request, job, listen), tell, [DONE])


async def _job(
    request: Request, body: ChatRequest | CompletionRequest, server: Serving, asked: Conversation, limit: int | None
) -> Job:
    field, procedure, draws = body.drawing
    return await server.job(
        request, body, asked, procedure, field, draws=draws, max_tokens=limit, logprobs=body.alternatives
    )
