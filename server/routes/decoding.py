"""``/v1/best-of-n``, ``/v1/worst-of-n`` and ``/v1/rewards``: the decoding endpoints proper."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from infalign.procedures import BestOfN, Standard, WorstOfN
from server.auth import needs
from server.choices import told
from server.decoder import Decoded, Event, Grown, Job
from server.protocol.answers import DecodingAnswer, RewardsAnswer, Theory
from server.protocol.requests import DecodingRequest, RewardsRequest
from server.routes.common import (
    Server,
    Serving,
    beside,
    calibration_info,
    conversation,
    json_answer,
    selection,
    side,
    usage,
    while_connected,
)
from server.streaming import STREAMED, data, stream

router = APIRouter(prefix="/v1", tags=["decoding"], dependencies=[needs("generate")])
DECODES: dict[str, Any] = {
    "response_model": DecodingAnswer,
    "responses": STREAMED,
}


@router.post("/best-of-n", summary="Draw N candidates, select the best", **DECODES)
async def best_of_n(body: DecodingRequest, request: Request, server: Server) -> Response:
    """Draw ``n`` candidates and select those of highest reward."""
    return await _decode(body, request, server, BestOfN)


@router.post("/worst-of-n", summary="Draw N candidates, select the worst", **DECODES)
async def worst_of_n(body: DecodingRequest, request: Request, server: Server) -> Response:
    """Draw ``n`` candidates and select those of lowest reward: what a persistent user could get out of the model."""
    return await _decode(body, request, server, WorstOfN)


@router.post("/rewards", summary="Reward and quantile of given responses", response_model_exclude_none=True)
async def rewards(body: RewardsRequest, request: Request, server: Server) -> RewardsAnswer:
    """Score responses that the client brings."""
    model = server.catalogue.choose(body.model, Standard()).policy
    server.check_n("responses", len(body.responses))
    asked = conversation(body.messages, body.prompt)
    work = server.bounded(lambda: server.decoder.rewards(asked, body.responses, body.calibrate))
    scored, calibration = await while_connected(request, work)
    return RewardsAnswer(model=model, rewards=scored, calibration=calibration_info(calibration))


async def _decode(
    body: DecodingRequest, request: Request, server: Serving, kind: type[BestOfN] | type[WorstOfN]
) -> Response:
    asked = conversation(body.messages, body.prompt)
    procedure = body.procedure(kind, server.catalogue.procedure_of(body.model))
    job = await server.job(request, body, asked, procedure, "n", max_tokens=body.max_tokens, logprobs=body.logprobs)
    if not body.stream:
        decoded = await while_connected(request, server.decode(request, job))
        return await beside(decoded, lambda: json_answer(_answer(body, job, decoded)))

    def tell(event: Event | Decoded) -> Iterator[ServerSentEvent]:
        if isinstance(event, Decoded):
            yield data(_answer(body, job, event).model_dump(mode="json", exclude_none=True), "answer")
        elif not isinstance(event, Grown):
            yield data(told(event, job.sees_all, body.return_candidates), "candidate")

    return await stream(request, lambda listen: server.decode(request, job, listen), tell)


def _answer(body: DecodingRequest, job: Job, decoded: Decoded) -> DecodingAnswer:
    return DecodingAnswer(
        id=f"decoding-{uuid4().hex}",
        created=int(time.time()),
        model=job.sampling.policy or "",
        selected=selection(job, decoded),
        theory=_theory(job, decoded),
        usage=usage(decoded),
        **side(body, job, decoded),
    )


def _theory(job: Job, decoded: Decoded) -> Theory:
    draws = 1 if job.sampling.greedy else len(decoded.ranked)
    procedure = replace(job.procedure, n=draws)
    return Theory(n=draws, expected_quantile=procedure.expected_quantile, kl_bound=procedure.kl_bound)
