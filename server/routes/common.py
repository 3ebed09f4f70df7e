"""What the endpoints share: from a request to a job for the decoder, and giving up when the client has gone."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Response
from pydantic import BaseModel
from starlette.requests import Request

from infalign.calibration import Calibration
from infalign.manifest import SamplingLaw
from infalign.procedures import FixedN
from server.access.disclosure import Disclosure, upper_half
from server.account import selected
from server.adapters import Adapters
from server.admission import Admission
from server.audit import Call
from server.auth import Caller, caller_of
from server.catalogue import Catalogue, Choice
from server.decoder import Decoded, Decoder, Event, Job
from server.decoding.reader import Conversation
from server.engines import Sampling, Structure
from server.errors import BadRequest, DeadlineExceeded
from server.metrics import Metrics
from server.protocol.answers import CalibrationInfo, Candidate, Missing, Usage
from server.protocol.messages import Message
from server.protocol.requests import Drawing, ResponseFormat
from server.settings import Settings

T = TypeVar("T")
SHORT_ANSWER = 1000
"""Log-probabilities that are written on the event loop, in a few milliseconds."""
LOGPROBS = 100_000
"""Log-probabilities of one request: candidates x max_tokens x (1 + alternatives)."""


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


@dataclass(frozen=True)
class Serving:
    """What a request is served with, in ``app.state.serving``."""

    catalogue: Catalogue
    law: SamplingLaw
    """The bundle's, the default of every request."""
    decoder: Decoder
    admission: Admission
    adapters: Adapters
    settings: Settings
    metrics: Metrics

    def check_n(self, field: str, n: int) -> None:
        """Raise BadRequest if more candidates are asked for than the operator allows."""
        if n > self.settings.max_n:
            raise BadRequest(f"{field}: got {n}, accepted: at most {self.settings.max_n}", field)

    async def job(
        self,
        request: Request,
        body: Drawing,
        asked: Conversation,
        procedure: FixedN,
        field: str,
        *,
        draws: int | None = None,
        max_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> Job:
        """What a request asks of the decoder: its own fields, else the bundle's law; a seed is drawn if none is given.

        ``field`` is the one that says N. ``draws`` is N unless the procedure is standard.

        Raises:
            UnknownModel: there is no such model.
            Forbidden: the key lacks the role that the procedure or the candidates take.
            BadRequest: more candidates or time than the operator allows, more to select than there are candidates, or
                messages that the chat template refuses.
        """
        choice = self.catalogue.choose(body.model, procedure)
        if choice.procedure != procedure:
            field, draws = "model", None
        n = draws or choice.procedure.n
        if body.top > n:
            top = body.TOP_FIELD
            raise BadRequest(f"{top}: got {body.top}, accepted: at most {n}, the candidates of {choice.procedure}", top)
        caller = await self._permit(request, body, asked, choice, n, field)
        self.check_n(field, n)
        law, settings = self.law, self.settings
        if body.timeout is not None and body.timeout > settings.deadline:
            raise BadRequest(f"timeout: got {body.timeout:g}, accepted: at most {settings.deadline:g}", "timeout")
        if body.min_candidates is not None and body.min_candidates > n:
            raise BadRequest(f"min_candidates: got {body.min_candidates}, accepted: at most {n}", "min_candidates")
        limit = law.max_tokens if max_tokens is None else max_tokens
        if body.min_tokens > limit:
            raise BadRequest(f"min_tokens: got {body.min_tokens}, accepted: at most max_tokens, {limit}", "min_tokens")
        if logprobs is not None and (entries := n * limit * (1 + logprobs)) > LOGPROBS:
            raise BadRequest(
                f"logprobs: {n} candidates of up to {limit} tokens (max_tokens) with {1 + logprobs} log-probabilities "
                f"each make {entries}, accepted: at most {LOGPROBS}",
                "logprobs",
            )
        sampling = Sampling(
            temperature=law.temperature if body.temperature is None else body.temperature,
            top_p=law.top_p if body.top_p is None else body.top_p,
            top_k=law.top_k if body.top_k is None else body.top_k,
            min_p=body.min_p,
            max_tokens=limit,
            min_tokens=body.min_tokens,
            policy=choice.policy,
            seed=random.getrandbits(31) if body.seed is None else body.seed,
            stop=body.stops,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
            logprobs=logprobs,
            structure=_structure(body.response_format),
        )
        return Job(
            asked,
            choice.procedure,
            sampling,
            draws=n,
            fewest=n if body.min_candidates is None else body.min_candidates,
            seconds=settings.deadline if body.timeout is None else body.timeout,
            calibrate=body.calibrate,
            top=body.top,
            sees_all=caller.may("probe"),
        )

    async def bounded(self, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` comes to, if there is a place and time for it.

        Raises:
            Overloaded: there is no place.
            DeadlineExceeded: it took longer than the operator allows.
        """
        with self.admission.admitted():
            try:
                async with asyncio.timeout(self.settings.deadline):
                    return await work()
            except TimeoutError as error:
                raise DeadlineExceeded(f"not done within {self.settings.deadline:g} s") from error

    async def decode(self, request: Request, job: Job, listen: Callable[[Event], None] | None = None) -> Decoded:
        """Decode, if there is a place, and note for the audit what came of it.

        Raises:
            Overloaded: there is no place.
            ServerError: as :meth:`Decoder.decode`.
        """
        found: Decoded = await request.scope["audit"].follow(self._decode(job, listen))
        return found

    async def _decode(self, job: Job, listen: Callable[[Event], None] | None) -> Decoded:
        with self.admission.admitted(), self.catalogue.using(job.sampling.policy or ""):
            return await self.decoder.decode(job, listen)

    async def _permit(
        self, request: Request, body: Drawing, asked: Conversation, choice: Choice, draws: int, field: str
    ) -> Caller:
        """Note for the audit what takes the role probe; raise Forbidden unless the key may have what is asked for."""
        caller, procedure = caller_of(request), choice.procedure
        disclosure = Disclosure(procedure, draws, body.top, body.return_candidates)
        # Without keys everyone has every role, and only worst-of-n is worth a line.
        if disclosure.worst or (disclosure.unfiltered and self.settings.keys is not None):
            key = await self.decoder.sampler.reader.key(asked)
            request.scope["audit"].call = Call(
                caller.name, body.user, choice.policy, str(procedure), draws, key, disclosure.unfiltered
            )
        if disclosure.worst:
            # Under the endpoint of its own, no field says so.
            caller.require("probe", str(procedure), None if field == "n" else field)
        if body.return_candidates:
            caller.require("probe", "unfiltered candidates", "return_candidates")
        if disclosure.beyond_half:
            more = 2 * body.top
            by = f":best-of-{more}" if field == "model" else f"{body.DRAWS_FIELD}: {more}"
            instead = f"the best {body.top} of {more} ({by}) take no role but generate"
            caller.require("probe", f"{body.top} of {draws} candidates", body.TOP_FIELD, instead)
        return caller


async def serving(request: Request) -> Serving:
    """The dependency through which endpoints get :class:`Serving`."""
    found: Serving = request.app.state.serving
    return found


Server = Annotated[Serving, Depends(serving)]


def conversation(messages: list[Message] | None, prompt: str | None = None) -> Conversation:
    """A request's messages or prompt."""
    if messages is not None:
        return Conversation(messages=tuple(message.plain for message in messages))
    return Conversation(prompt=prompt or "")


def selection(job: Job, decoded: Decoded) -> list[Candidate]:
    """The candidates that the client gets: as many as it asked for, without the role probe none of the lower half.

    Where some were not drawn in time, the half of those that were.
    """
    ranked = decoded.ranked
    count = job.top if job.sees_all else min(job.top, upper_half(len(ranked)))
    selected([candidate.text for candidate in ranked[:count]])
    return ranked[:count]


def calibration_info(calibration: Calibration) -> CalibrationInfo:
    """Scope and size of the calibration used."""
    return CalibrationInfo(scope=calibration.scope, samples=calibration.samples)


def usage(decoded: Decoded) -> Usage:
    """Tokens of the prompt once and of all candidates."""
    spent = decoded.completion_tokens
    return Usage(
        prompt_tokens=decoded.prompt_tokens, completion_tokens=spent, total_tokens=decoded.prompt_tokens + spent
    )


def side(body: Drawing, job: Job, decoded: Decoded) -> dict[str, Any]:
    """The fields that every answer of decoding has beside the selected candidates, and that OpenAI's do not have."""
    return {
        "procedure": str(job.procedure),
        "calibration": calibration_info(decoded.calibration),
        "candidates": decoded.in_drawn_order if body.return_candidates else None,
        "missing": Missing(asked=job.draws, reasons=decoded.failures) if decoded.failures else None,
        # Several candidates that are all the same.
        "greedy": True if job.sampling.greedy and job.draws > 1 else None,
    }


async def beside(decoded: Decoded, work: Callable[[], T]) -> T:
    """What ``work`` makes of ``decoded``, in a thread where log-probabilities make it long."""
    entries = sum(1 + len(token.top) for candidate in decoded.ranked for token in candidate.logprobs or ())
    return await asyncio.to_thread(work) if entries > SHORT_ANSWER else work()


def json_answer(answer: BaseModel) -> Response:
    """A whole answer; fields that are None are left out."""
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _structure(asked: ResponseFormat | None) -> Structure | None:
    if asked is None or asked.type == "text":
        return None
    return Structure(asked.type, asked.json_schema.schema_ if asked.json_schema else None)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled as soon as the client closes the connection.

    Raises:
        ClientGone: the client closed the connection.
    """
    task, gone = cast("asyncio.Task[T]", asyncio.current_task()), False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    # The work stays in this task: each that it is handed to waits behind all that is ready to run.
    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        watching.cancel()
