"""``/v1/best-of-n``, ``/v1/worst-of-n`` and ``/v1/rewards``: the decoding endpoints."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from infalign.procedures import BestOfN, Standard, WorstOfN
from server.decoding.jobs import CandidateDelta, DecodingResult, Event, Job
from server.protocol.answers import DecodingAnswer, RewardsAnswer, Theory
from server.protocol.requests import DecodingRequest, RewardsRequest
from server.routes.choices import describe_event
from server.routes.dependencies import require_role
from server.routes.disconnects import run_while_connected
from server.routes.jobs import make_conversation, make_job
from server.routes.results import (
    calibration_info,
    extension_fields,
    json_answer,
    render,
    select_candidates,
    usage,
    warning_headers,
)
from server.routes.scorer import check_calibrate
from server.routes.serving import Serving, ServingDep
from server.routes.streaming import STREAMED, json_event, stream

router = APIRouter(prefix="/v1", tags=["decoding"], dependencies=[require_role("generate")])
ROUTE_OPTIONS: dict[str, Any] = {
    "response_model": DecodingAnswer,
    "responses": STREAMED,
}


@router.post("/best-of-n", summary="Draw N candidates, select the best", **ROUTE_OPTIONS)
async def best_of_n(body: DecodingRequest, request: Request, serving: ServingDep) -> Response:
    """Draw ``n`` candidates and select those with the highest rewards."""
    return await _decode(body, request, serving, BestOfN)


@router.post("/worst-of-n", summary="Draw N candidates, select the worst", **ROUTE_OPTIONS)
async def worst_of_n(body: DecodingRequest, request: Request, serving: ServingDep) -> Response:
    """Draw ``n`` candidates and select those with the lowest rewards.

    This is what a persistent user could get out of the model.
    """
    return await _decode(body, request, serving, WorstOfN)


@router.post("/rewards", summary="Reward and quantile of given responses", response_model_exclude_none=True)
async def rewards(body: RewardsRequest, request: Request, serving: ServingDep) -> RewardsAnswer:
    """Score responses that the client provides."""
    model = serving.catalogue.choose(body.model, Standard()).policy
    serving.check_n("responses", len(body.responses))
    check_calibrate(serving, body.calibrate)
    conversation = make_conversation(serving, body)
    work = serving.run(lambda: serving.decoder.score(conversation, body.responses, body.calibrate))
    placements, calibration = await run_while_connected(request, work)
    return RewardsAnswer(model=model, rewards=placements, calibration=calibration_info(calibration))


async def _decode(
    body: DecodingRequest, request: Request, serving: Serving, kind: type[BestOfN] | type[WorstOfN]
) -> Response:
    conversation = make_conversation(serving, body)
    procedure = body.procedure(kind, serving.catalogue.suffix_procedure(body.model))
    job = await make_job(
        serving, request, body, conversation, procedure, "n", max_tokens=body.max_tokens, logprobs=body.logprobs
    )
    if not body.stream:
        result = await run_while_connected(request, serving.decode(request, job))
        return await render(result, lambda: json_answer(_answer(body, job, result, kind), warning_headers(job)))

    def to_events(event: Event | DecodingResult) -> Iterator[ServerSentEvent]:
        if isinstance(event, DecodingResult):
            yield json_event(_answer(body, job, event, kind).model_dump(mode="json", exclude_none=True), "answer")
        elif not isinstance(event, CandidateDelta):
            yield json_event(describe_event(event, job.sees_all, body.return_candidates), "candidate")

    return await stream(
        request, lambda listen: serving.decode(request, job, listen), to_events, headers=warning_headers(job)
    )


def _answer(
    body: DecodingRequest, job: Job, result: DecodingResult, kind: type[BestOfN] | type[WorstOfN]
) -> DecodingAnswer:
    n = 1 if job.sampling.greedy else result.compared
    return DecodingAnswer(
        id=f"decoding-{uuid4().hex}",
        created=int(time.time()),
        model=job.sampling.policy or "",
        selected=select_candidates(job, result),
        theory=Theory(n=n, expected_quantile=kind(n).expected_quantile, kl_bound=kind(n).kl_bound),
        usage=usage(result),
        **extension_fields(body, job, result),
    )
