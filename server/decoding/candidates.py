"""Draws the candidates of one job, and scores each as soon as it is drawn."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from infalign.procedures import Standard
from server.concurrency import gather_at_least
from server.decoding.engine_client import EngineClient, Scores
from server.decoding.jobs import CandidateDelta, CandidateFinished, CandidateScored, Event, Job
from server.decoding.reader import Prompt
from server.decoding.span_attributes import completion_attributes, job_attributes, score_attributes
from server.decoding.standing import Standing
from server.engines import Completion, Delta
from server.observability.failures import failure_code
from server.observability.tracing import Tracing
from server.protocol.answers import Candidate, Scored


class Candidates:
    """Draws and scores the candidates of one job concurrently.

    Args:
        job: What to decode.
        prompt: The prompt's tokens for the policy.
        lookup: Finds the prompt's calibration while candidates are drawn.
        client: Draws and scores single candidates.
        tracing: Gets a span for each draw and each score.
        listen: Called with every event.
    """

    def __init__(
        self,
        job: Job,
        prompt: Prompt,
        lookup: "asyncio.Task[Standing]",
        client: EngineClient,
        tracing: Tracing,
        listen: Callable[[Event], None] | None = None,
    ) -> None:
        self._job, self._prompt, self._lookup = job, prompt, lookup
        self._client, self._tracing, self._listen = client, tracing, listen
        self._scored_count = 0

    async def gather(self, until: float) -> tuple[list[Candidate], dict[str, int]]:
        """Draw and score all candidates, or at least as many as the job needs.

        Args:
            until: When to give up, as a time of the event loop's clock.

        Returns:
            The candidates by index, and the number of failed candidates by error code.

        Raises:
            TimeoutError: Time ran out before enough candidates were scored.
            ServerError: Too many candidates failed. This is the error of the first.
        """
        try:
            result = await gather_at_least(
                self._job.min_candidates, [self._run(i) for i in range(self._job.draws)], until
            )
        finally:
            self._client.metrics.aborted_candidates.inc(self._job.draws - self._scored_count)
        async with asyncio.timeout_at(until):
            standing = await self._lookup
        placements = standing.locate([scores.rewards for _, scores in result.results.values()])
        candidates = [
            self._candidate(index, completion, scores.unread, placement)
            for (index, (completion, scores)), placement in zip(result.results.items(), placements, strict=True)
        ]
        return candidates, dict(Counter(map(failure_code, result.failures)))

    async def _run(self, index: int) -> tuple[Completion, Scores]:
        completion = await self._draw(index)
        self._notify(CandidateFinished(index, completion))
        scores, placement = await self._score(index, completion)
        self._scored_count += 1
        if placement:
            self._notify(CandidateScored(self._candidate(index, completion, scores.unread, placement)))
        return completion, scores

    async def _draw(self, index: int) -> Completion:
        # The text of candidates that will be ranked is shown only when they are finished.
        live = self._listen and isinstance(self._job.procedure, Standard)
        sampling = replace(self._job.sampling, seed=self._job.sampling.seed + index)

        def grow(delta: Delta) -> None:
            self._notify(CandidateDelta(index, delta))

        with self._tracing.span("generate", job_attributes(self._job, index)) as span:
            completion = await self._client.draw(self._prompt, sampling, grow if live else None)
            span.set(completion_attributes(self._prompt, sampling, completion))
        return completion

    async def _score(self, index: int, completion: Completion) -> tuple[Scores, Scored | None]:
        """Score a candidate. Also compute its quantile if somebody listens or the span is recorded."""
        placement = None
        with self._tracing.span("score", job_attributes(self._job, index)) as span:
            scores = await self._client.score_candidate(self._job.conversation, completion.text)
            if self._listen or span.is_recording:
                standing = await asyncio.shield(self._lookup)  # shared by all candidates
                placement = standing.locate([scores.rewards])[0]
                span.set(score_attributes(placement))
        return scores, placement

    def _notify(self, event: Event) -> None:
        if self._listen:
            self._listen(event)

    def _candidate(self, index: int, completion: Completion, unread: int, placement: Scored) -> Candidate:
        return Candidate(
            **vars(placement) | {"index": index},
            unread_tokens=unread or None,
            text=completion.text,
            finish_reason=completion.finish_reason,
            completion_tokens=completion.tokens,
            seed=self._job.sampling.seed + index,
            logprobs=completion.logprobs,
        )
