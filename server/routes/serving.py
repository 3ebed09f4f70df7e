"""The objects that serve requests, shared by all routes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends
from starlette.requests import Request

from infalign.manifest import SamplingLaw
from server.decoding.adapters import Adapters
from server.decoding.admission import Admission
from server.decoding.catalogue import Catalogue, Choice
from server.decoding.decoder import Decoder
from server.decoding.jobs import DecodingResult, Event, Job
from server.decoding.judged import Judged
from server.errors import BadRequest, DeadlineExceeded
from server.observability.metrics import Metrics
from server.protocol.session import Story
from server.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Serving:
    """The objects that serve requests. It is ``app.state.serving``."""

    catalogue: Catalogue
    law: SamplingLaw
    """The bundle's sampling law: the default sampling of every request."""
    decoder: Decoder
    admission: Admission
    adapters: Adapters
    judged: Judged
    settings: Settings
    metrics: Metrics
    story: Story
    """What the playground explains quantiles with."""

    def check_n(self, field: str, n: int, largest: int | None = None) -> None:
        """Check the number of candidates.

        Args:
            field: The request field that sets it.
            n: The number of candidates.
            largest: The operator's limit; ``max_n`` by default.

        Raises:
            BadRequest: It exceeds the limit.
        """
        largest = self.settings.max_n if largest is None else largest
        if n > largest:
            raise BadRequest(f"{field}: got {n}, accepted: at most {largest}", field)

    def largest_n(self, choice: Choice) -> int:
        """Return the largest N that the operator allows with a policy and a procedure."""
        judged = self.judged.limit(choice.policy, choice.procedure)
        return self.settings.max_n if judged is None else min(self.settings.max_n, judged)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run ``work`` within the operator's limits of requests and time.

        Args:
            work: Starts the work.

        Raises:
            Overloaded: Too many requests are being worked on.
            DeadlineExceeded: The work took longer than the operator allows.
        """
        with self.admission.admit():
            try:
                async with asyncio.timeout(self.settings.deadline):
                    return await work()
            except TimeoutError as error:
                raise DeadlineExceeded(f"not done within {self.settings.deadline:g} s") from error

    async def decode(self, request: Request, job: Job, listen: Callable[[Event], None] | None = None) -> DecodingResult:
        """Decode within the operator's limit of requests, and note the outcome for the audit log.

        Args:
            request: The HTTP request.
            job: What to decode.
            listen: Called with every event.

        Raises:
            Overloaded: Too many requests are being worked on.
            ServerError: As in :meth:`Decoder.decode`.
        """
        result: DecodingResult = await request.scope["audit"].follow(self._decode(job, listen))
        return result

    async def _decode(self, job: Job, listen: Callable[[Event], None] | None) -> DecodingResult:
        with self.admission.admit(), self.catalogue.use(job.sampling.policy or ""):
            return await self.decoder.decode(job, listen)


async def get_serving(request: Request) -> Serving:
    """Dependency that provides :class:`Serving`."""
    serving: Serving = request.app.state.serving
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]
