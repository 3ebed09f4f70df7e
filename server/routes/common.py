"""What the endpoints share: from a request to a job for the decoder, and giving up when the client has gone."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends
from starlette.requests import Request

from infalign.calibration import Calibration
from infalign.manifest import SamplingLaw
from infalign.procedures import FixedN, WorstOfN
from infalign.templates import prompt_key
from server.adapters import Adapters
from server.admission import Admission
from server.audit import Call
from server.auth import caller_of
from server.catalogue import Catalogue, Choice
from server.decoder import Decoded, Decoder, Event, Job
from server.engines import Sampling, Structure
from server.errors import BadRequest, DeadlineExceeded
from server.metrics import Metrics
from server.protocol.answers import CalibrationInfo, Missing, Usage
from server.protocol.messages import Message
from server.protocol.requests import ResponseFormat, Sampled
from server.sampler import Conversation
from server.settings import Settings

T = TypeVar("T")


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

    def job(
        self,
        request: Request,
        body: Sampled,
        asked: Conversation,
        procedure: FixedN,
        field: str,
        selection: tuple[str, int],
        *,
        draws: int | None = None,
        max_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> Job:
        """What a request asks of the decoder: its own fields, else the bundle's law; a seed is drawn if none is given.

        ``field`` is the one that says N, ``selection`` the one that says how many are selected, and its value.
        ``draws`` is N unless the procedure is standard.

        Raises:
            UnknownModel: there is no such model.
            Forbidden: the key lacks the role that the procedure or the candidates take.
            BadRequest: more candidates or time than the operator allows, or more to select than there are candidates.
        """
        choice = self.catalogue.choose(body.model, procedure)
        if choice.procedure != procedure:
            field, draws = "model", None
        self._permit(request, body, asked, choice, field)
        n = draws or choice.procedure.n
        self.check_n(field, n)
        selecting, selected = selection
        if selected > n:
            raise BadRequest(
                f"{selecting}: got {selected}, accepted: at most {n}, the candidates of {choice.procedure}", selecting
            )
        law, settings = self.law, self.settings
        if body.timeout is not None and body.timeout > settings.deadline:
            raise BadRequest(f"timeout: got {body.timeout:g}, accepted: at most {settings.deadline:g}", "timeout")
        if body.min_candidates is not None and body.min_candidates > n:
            raise BadRequest(f"min_candidates: got {body.min_candidates}, accepted: at most {n}", "min_candidates")
        limit = law.max_tokens if max_tokens is None else max_tokens
        if body.min_tokens > limit:
            raise BadRequest(f"min_tokens: got {body.min_tokens}, accepted: at most max_tokens, {limit}", "min_tokens")
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

    def _permit(self, request: Request, body: Sampled, asked: Conversation, choice: Choice, field: str) -> None:
        """Note a worst-of-n call for the audit; raise Forbidden unless the key may have what is asked for."""
        caller = caller_of(request)
        procedure = choice.procedure
        if isinstance(procedure, WorstOfN):
            key = prompt_key(self.decoder.sampler.render(asked))
            request.scope["audit"].call = Call(caller.name, body.user, choice.policy, str(procedure), procedure.n, key)
            # Under the endpoint of its own, no field says so.
            caller.require("probe", str(procedure), None if field == "n" else field)
        if body.return_candidates:
            caller.require("probe", "unfiltered candidates", "return_candidates")


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


def calibration_info(calibration: Calibration) -> CalibrationInfo:
    """Scope and size of the calibration used."""
    return CalibrationInfo(scope=calibration.scope, samples=calibration.samples)


def usage(decoded: Decoded) -> Usage:
    """Tokens of the prompt once and of all candidates."""
    spent = decoded.completion_tokens
    return Usage(
        prompt_tokens=decoded.prompt_tokens, completion_tokens=spent, total_tokens=decoded.prompt_tokens + spent
    )


def is_greedy(job: Job) -> bool | None:
    """True where several candidates are drawn that are all the same, else None."""
    return True if job.sampling.greedy and job.draws > 1 else None


def missing(job: Job, decoded: Decoded) -> Missing | None:
    """Candidates that there are none of, if there are any."""
    return Missing(asked=job.draws, reasons=decoded.failures) if decoded.failures else None


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
