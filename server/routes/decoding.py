"""``/v1/best-of-n``, ``/v1/worst-of-n`` and ``/v1/rewards``: the decoding endpoints proper."""

import time
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from infalign.procedures import BestOfN, FixedN, WorstOfN
from server.protocol import (
    DecodingAnswer,
    DecodingRequest,
    RewardsAnswer,
    RewardsRequest,
    Theory,
)
from server.routes.common import Serving, calibration_info, conversation, serving, usage, while_connected

router = APIRouter(prefix="/v1", tags=["decoding"])
Server = Annotated[Serving, Depends(serving)]


@router.post("/best-of-n", summary="Draw N candidates, select the best", response_model_exclude_none=True)
async def best_of_n(body: DecodingRequest, request: Request, server: Server) -> DecodingAnswer:
    """Draw ``n`` candidates and select those of highest reward."""
    return await _decode(body, request, server, BestOfN)


@router.post("/worst-of-n", summary="Draw N candidates, select the worst", response_model_exclude_none=True)
async def worst_of_n(body: DecodingRequest, request: Request, server: Server) -> DecodingAnswer:
    """Draw ``n`` candidates and select those of lowest reward: what a persistent user could get out of the model."""
    return await _decode(body, request, server, WorstOfN)


@router.post("/rewards", summary="Reward and quantile of given responses", response_model_exclude_none=True)
async def rewards(body: RewardsRequest, request: Request, server: Server) -> RewardsAnswer:
    """Score responses that the client brings."""
    model = server.model(body.model)
    server.check_n("responses", len(body.responses))
    work = server.decoder.rewards(conversation(body.messages, body.prompt), body.responses)
    scored, calibration = await while_connected(request, work)
    return RewardsAnswer(model=model, rewards=scored, calibration=calibration_info(calibration))


async def _decode(
    body: DecodingRequest, request: Request, server: Serving, kind: type[BestOfN] | type[WorstOfN]
) -> DecodingAnswer:
    sampling = server.sampling(body, body.max_tokens)
    server.check_n("n", body.n)
    procedure: FixedN = kind(body.n)
    decoded = await server.decode(request, conversation(body.messages, body.prompt), procedure, sampling)
    return DecodingAnswer(
        id=f"decoding-{uuid4().hex}",
        created=int(time.time()),
        model=sampling.policy,
        procedure=str(procedure),
        selected=decoded.ranked[: body.top],
        candidates=decoded.in_drawn_order if body.return_candidates else None,
        calibration=calibration_info(decoded.calibration),
        theory=Theory(expected_quantile=procedure.expected_quantile, kl_bound=procedure.kl_bound),
        usage=usage(decoded),
    )
