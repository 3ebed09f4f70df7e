"""What the endpoints share: the served policies, sampling from a request, and giving up when the client has gone."""

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from infalign.calibration import Calibration
from infalign.procedures import FixedN
from server.decoder import Conversation, Decoded, Decoder
from server.engines import Sampling
from server.errors import BadRequest, UnknownModel
from server.metrics import Metrics
from server.protocol import CalibrationInfo, Message, Usage, _Sampled
from server.settings import Settings

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


@dataclass(frozen=True)
class Serving:
    """What a request is served with, in ``app.state.serving``."""

    models: tuple[str, ...]
    """Names of the policies; the first answers requests that name none."""
    decoder: Decoder
    settings: Settings
    metrics: Metrics

    def model(self, asked: str | None) -> str:
        """The policy that answers a request; raises UnknownModel if there is none of that name."""
        if asked is None:
            return self.models[0]
        if asked not in self.models:
            raise UnknownModel(f"model: got {asked!r}, accepted: {', '.join(self.models)}", "model")
        return asked

    def check_n(self, field: str, n: int) -> None:
        """Raise BadRequest if more candidates are asked for than the operator allows."""
        if n > self.settings.max_n:
            raise BadRequest(f"{field}: got {n}, accepted: at most {self.settings.max_n}", field)

    def sampling(self, body: _Sampled, max_tokens: int | None) -> Sampling:
        """The request's sampling: its own fields, else the bundle's law; a seed is drawn if none is given."""
        law = self.decoder.law
        return Sampling(
            temperature=law.temperature if body.temperature is None else body.temperature,
            top_p=law.top_p if body.top_p is None else body.top_p,
            top_k=law.top_k if body.top_k is None else body.top_k,
            max_tokens=law.max_tokens if max_tokens is None else max_tokens,
            policy=self.model(body.model),
            seed=random.getrandbits(31) if body.seed is None else body.seed,
            stop=body.stops,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
        )

    async def decode(
        self,
        request: Request,
        conversation: Conversation,
        procedure: FixedN,
        sampling: Sampling,
        draws: int | None = None,
    ) -> Decoded:
        """Decode for a client that may go away; its candidates are aborted then."""
        return await while_connected(request, self.decoder.decode(conversation, procedure, sampling, draws))


def serving(request: Request) -> Serving:
    """The dependency through which endpoints get :class:`Serving`."""
    found: Serving = request.app.state.serving
    return found


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


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled as soon as the client closes the connection.

    Raises:
        ClientGone: the client closed the connection.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
