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
from server.decoding.span_attributes import job_attributes, score_attributes, turn_attributes
from server.decoding.standing import Standing
from server.engines import Delta
from server.engines.turns import Turn
from server.errors import NoAnswer
from server.observability.failures import failure_code
from server.observability.tracing import Tracing
from server.protocol.answers import Candidate, FunctionCall, Scored, ToolCall


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
        self._done_count = 0

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
            self._client.metrics.aborted_candidates.inc(self._job.draws - self._done_count)
        async with asyncio.timeout_at(until):
            standing = await self._lookup
        answered = {index: (turn, scores) for index, (turn, scores) in result.results.items() if scores is not None}
        failures = dict(Counter(map(failure_code, result.failures)))
        if unanswered := len(result.results) - len(answered):
            failures[NoAnswer.code] = unanswered
            self._check_answers(len(answered))
        placements = standing.locate([scores.rewards for _, scores in answered.values()])
        candidates = [
            self._candidate(index, turn, scores.unread, placement)
            for (index, (turn, scores)), placement in zip(answered.items(), placements, strict=True)
        ]
        return candidates, failures

    async def _run(self, index: int) -> tuple[Turn, Scores | None]:
        turn = await self._draw(index)
        self._notify(CandidateFinished(index, turn))
        scores, placement = (None, None) if turn.scored is None else await self._score(index, turn.scored)
        self._done_count += 1
        if scores and placement:
            self._notify(CandidateScored(self._candidate(index, turn, scores.unread, placement)))
        return turn, scores

    async def _draw(self, index: int) -> Turn:
        # The text of candidates that will be ranked is shown only when they are finished.
        live = self._listen and isinstance(self._job.procedure, Standard)
        sampling = replace(self._job.sampling, seed=self._job.sampling.seed + index)

        def grow(delta: Delta) -> None:
            self._notify(CandidateDelta(index, delta))

        with self._tracing.span("generate", job_attributes(self._job, index)) as span:
            turn = await self._client.draw(self._prompt, sampling, grow if live else None)
            span.set(turn_attributes(self._prompt, sampling, turn))
        return turn

    async def _score(self, index: int, text: str) -> tuple[Scores, Scored | None]:
        """Score a candidate. Also compute its quantile if somebody listens or the span is recorded."""
        placement = None
        with self._tracing.span("score", job_attributes(self._job, index)) as span:
            scores = await self._client.score_candidate(self._job.conversation, text)
            if self._listen or span.is_recording:
                standing = await asyncio.shield(self._lookup)  # shared by all candidates
                placement = standing.locate([scores.rewards])[0]
                span.set(score_attributes(placement))
        return scores, placement

    def _notify(self, event: Event) -> None:
        if self._listen:
            self._listen(event)

    def _check_answers(self, count: int) -> None:
        """Raise NoAnswer if fewer candidates came to an answer than the job needs."""
        if count < self._job.answers:
            raise NoAnswer(
                f"max_tokens: of {self._job.draws} responses, {count} came to an answer; reasoning takes more than "
                f"{self._job.sampling.max_tokens} tokens here",
                "max_tokens",
            )

    def _candidate(self, index: int, turn: Turn, unread: int, placement: Scored) -> Candidate:
        calls = [
            ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in turn.tool_calls
        ]
        return Candidate(
            **vars(placement) | {"index": index},
            unread_tokens=unread or None,
            text=turn.answer,
            reasoning=turn.reasoning,
            tool_calls=calls or None,
            finish_reason=turn.finish_reason,
            completion_tokens=turn.completion.tokens,
            seed=self._job.sampling.seed + index,
            logprobs=turn.completion.logprobs,
        )
