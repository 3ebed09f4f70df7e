"""``/v1/controlled``: answers that grow by the best of K blocks."""

import time
from collections.abc import Iterator
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from sse_starlette import ServerSentEvent

from server.decoding.jobs import CandidateDelta, DecodingResult, Event, Job
from server.protocol.answers import ControlledAnswer
from server.protocol.requests import ControlledRequest
from server.routes.dependencies import require_role
from server.routes.disconnects import run_while_connected
from server.routes.jobs import make_conversation, make_job
from server.routes.results import extension_fields, json_answer, render, select_candidates, usage
from server.routes.serving import ServingDep
from server.routes.streaming import STREAMED, json_event, stream

router = APIRouter(prefix="/v1", tags=["decoding"], dependencies=[require_role("generate")])


@router.post(
    "/controlled",
    summary="Let an answer grow by the best of K blocks",
    response_model=ControlledAnswer,
    responses=STREAMED,
)
async def controlled(body: ControlledRequest, request: Request, serving: ServingDep) -> Response:
    """Draw ``k`` continuations of ``block`` tokens, go on from the one that promises most, and so on to the end.

    The prefix scorer says what a continuation promises. One that ends the answer is compared by its true quantile.
    """
    catalogue = serving.catalogue
    procedure = body.procedure(catalogue.suffix_procedure(body.model), catalogue.block)
    job = await make_job(
        serving,
        request,
        body,
        make_conversation(serving, body),
        procedure,
        "k",
        draws=body.n,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
    )
    if not body.stream:
        result = await run_while_connected(request, serving.decode(request, job))
        return await render(result, lambda: json_answer(_answer(body, job, result)))

    def to_events(event: Event | DecodingResult) -> Iterator[ServerSentEvent]:
        if isinstance(event, DecodingResult):
            yield json_event(_answer(body, job, event).model_dump(mode="json", exclude_none=True), "answer")
        elif isinstance(event, CandidateDelta) and event.delta.text:
            yield json_event({"index": event.index, "text": event.delta.text}, "text")

    return await stream(request, lambda listen: serving.decode(request, job, listen), to_events)


def _answer(body: ControlledRequest, job: Job, result: DecodingResult) -> ControlledAnswer:
    return ControlledAnswer(
        id=f"decoding-{uuid4().hex}",
        created=int(time.time()),
        model=job.sampling.policy or "",
        selected=select_candidates(job, result),
        usage=usage(result),
        **extension_fields(body, job, result),
    )
