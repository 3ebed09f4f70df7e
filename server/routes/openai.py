"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``, compatible with OpenAI's clients."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from infalign.controlled import Controlled
from infalign.errors import shorten
from infalign.procedures import Standard
from server.decoding.catalogue import AUTO
from server.decoding.jobs import DecodingResult, Event, Job
from server.decoding.reader import Conversation
from server.errors import UnknownModel
from server.protocol.answers import ModelCard, ModelsAnswer, OpenAIAnswer, SupportedN
from server.protocol.requests import ChatRequest, CompletionRequest
from server.routes.choices import ChatForm, Chunks, CompletionForm, Form, make_choices
from server.routes.dependencies import get_caller, require_role
from server.routes.disconnects import run_while_connected
from server.routes.jobs import make_conversation, make_job
from server.routes.results import extension_fields, json_answer, render, select_candidates, usage, warning_headers
from server.routes.serving import Serving, ServingDep
from server.routes.streaming import DONE, STREAMED, json_event, stream

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(get_caller)])
ROUTE_OPTIONS: dict[str, Any] = {
    "dependencies": [require_role("generate")],
    "response_model": OpenAIAnswer,
    "responses": STREAMED,
}


@router.post("/chat/completions", **ROUTE_OPTIONS)
async def chat_completions(body: ChatRequest, request: Request, serving: ServingDep) -> Response:
    """OpenAI chat completions, with ``best_of`` or ``worst_of``."""
    limit = body.max_completion_tokens or body.max_tokens
    return await _answer(body, request, serving, make_conversation(serving, body), limit, ChatForm())


@router.post("/completions", **ROUTE_OPTIONS)
async def completions(body: CompletionRequest, request: Request, serving: ServingDep) -> Response:
    """OpenAI text completions, with ``best_of`` or ``worst_of``.

    ``best_of`` ranks by reward, not by log-probability.
    """
    return await _answer(body, request, serving, Conversation(prompt=body.prompt), body.max_tokens, CompletionForm())


@router.get("/models", response_model_exclude_none=True)
async def models(serving: ServingDep) -> ModelsAnswer:
    """List the served policies, alone and with a procedure after the name."""
    cards = (_card(serving, name) for name in serving.catalogue.names(serving.settings.max_n))
    return ModelsAnswer(data=[card for card in cards if card])


@router.get("/models/{name}", response_model_exclude_none=True)
async def model(name: str, serving: ServingDep) -> ModelCard:
    """Return one of the listed models, or any other name that requests may use as their ``model``."""
    card = _card(serving, name)
    if card is None:
        most = serving.largest_n(serving.catalogue.choose(name, Standard()))
        raise UnknownModel(f"model: got {shorten(name)}, accepted: N or K of at most {most}", "model")
    return card


def _card(serving: Serving, name: str) -> ModelCard | None:
    """Describe a name; None if its N or K exceeds the operator's limits."""
    choice = serving.catalogue.choose(name, Standard())
    procedure = choice.procedure
    if (procedure.k if isinstance(procedure, Controlled) else procedure.n) > serving.largest_n(choice):
        return None
    support = {} if name == AUTO else serving.judged.support(choice.policy)
    found = {
        family: SupportedN(n=each.n, falls=each.falls, peak=each.peak)
        for family, each in support.items()
        if isinstance(procedure, Standard) or family == procedure.family
    }
    return ModelCard(id=name, supported_n=found or None)


async def _answer(
    body: ChatRequest | CompletionRequest,
    request: Request,
    serving: Serving,
    conversation: Conversation,
    limit: int | None,
    form: Form,
) -> Response:
    job = await _job(request, body, serving, conversation, limit)
    head = {
        "id": f"{form.prefix}-{uuid4().hex}",
        "created": int(time.time()),
        "model": job.sampling.policy,
    }
    if body.stream:
        return await _stream(body, request, serving, job, form, head)
    result = await run_while_connected(request, serving.decode(request, job))
    selection = select_candidates(job, result)

    def answer() -> Response:
        return json_answer(
            OpenAIAnswer(
                **head,
                object=form.object_name,
                choices=make_choices(form, selection),
                usage=usage(result),
                **extension_fields(body, job, result),
            ),
            warning_headers(job),
        )

    return await render(result, answer)


async def _stream(
    body: ChatRequest | CompletionRequest,
    request: Request,
    serving: Serving,
    job: Job,
    form: Form,
    head: dict[str, Any],
) -> EventSourceResponse:
    chunks = Chunks(form, head, isinstance(job.procedure, Standard | Controlled), job.sees_all, body.return_candidates)

    def to_events(event: Event | DecodingResult) -> Iterator[ServerSentEvent]:
        if not isinstance(event, DecodingResult):
            yield from map(json_event, chunks.from_event(event))
            return
        *rest, last = chunks.end(select_candidates(job, event))
        yield from map(json_event, rest)
        extension = extension_fields(body, job, event)
        answer = OpenAIAnswer(**head, object=form.object_name, choices=[], usage=usage(event), **extension)
        yield json_event(last | answer.model_dump(include=set(extension), exclude_none=True))
        if body.stream_options and body.stream_options.include_usage:
            yield json_event({**head, "object": form.chunk_name, "choices": [], "usage": usage(event).model_dump()})

    return await stream(
        request, lambda listen: serving.decode(request, job, listen), to_events, [DONE], warning_headers(job)
    )


async def _job(
    request: Request,
    body: ChatRequest | CompletionRequest,
    serving: Serving,
    conversation: Conversation,
    limit: int | None,
) -> Job:
    field, procedure, draws = body.drawing
    return await make_job(
        serving,
        request,
        body,
        conversation,
        procedure,
        field,
        draws=draws,
        max_tokens=limit,
        logprobs=body.alternatives,
    )
