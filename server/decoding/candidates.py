"""Draws the candidates of one job, and scores each as soon as it is drawn."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

from infalign.controlled import Controlled
from infalign.procedures import Standard
from server.concurrency import gather_at_least
from server.decoding.blocks import Blocks
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
    """Draws and scores the candidates of one job: all at once, in waves, or one by one.

    Args:
        job: What to decode.
        prompt: The prompt's tokens for the policy.
        lookup: Finds the prompt's calibration while candidates are drawn.
        client: Draws and scores single candidates.
        tracing: Gets a span for each draw and each score.
        listen: Called with every event.
        blocks: Draws the candidates, under controlled decoding.
    """

    def __init__(
        self,
        job: Job,
        prompt: Prompt,
        lookup: "asyncio.Task[Standing]",
        client: EngineClient,
        tracing: Tracing,
        listen: Callable[[Event], None] | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self._blocks = blocks
        self._job, self.prompt, self._lookup = job, prompt, lookup
        self._client, self._tracing, self._listen = client, tracing, listen
        self._done_count = 0
        self._answered: dict[int, tuple[Turn, Scores]] = {}
        self._failure_codes: Counter[str] = Counter()
        self.drawn = 0
        """How many candidates have been started."""
        self.unanswered_tokens = 0
        """Tokens of the candidates that came to no answer."""
        self.errors: list[BaseException] = []
        """What the failed candidates have raised."""

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed candidates by error code."""
        return dict(self._failure_codes)

    async def gather(self, until: float) -> list[Candidate]:
        """Draw and score all candidates, or at least as many as the job needs.

        Args:
            until: When to give up, as a time of the event loop's clock.

        Returns:
            The candidates by index.

        Raises:
            TimeoutError: Time ran out before enough candidates were scored.
            ServerError: Too many candidates failed. This is the error of the first.
        """
        await self.draw(self._job.draws, self._job.min_candidates, until)
        standing = await self.find_standing(until)
        self.check_answers()
        return self.locate(standing)

    async def draw(self, size: int, minimum: int, until: float) -> None:
        """Draw and score the next candidates at the same time.

        Args:
            size: Number of candidates.
            minimum: How many of them must not fail.
            until: When to give up.

        Raises:
            TimeoutError: Time ran out before so many were scored.
            ServerError: Too many failed. This is the error of the first.
        """
        first, done_before = self.drawn, self._done_count
        self.drawn += size
        try:
            result = await gather_at_least(minimum, [self._run(i) for i in range(first, self.drawn)], until)
        finally:
            self._client.metrics.aborted_candidates.inc(size - (self._done_count - done_before))
        for place, (turn, scores) in result.results.items():
            self.add(first + place, turn, scores)
        for failure in result.failures:
            self.add_failure(failure)

    def begin(self, size: int) -> range:
        """Count candidates that are about to be drawn one by one.

        Args:
            size: Number of candidates.

        Returns:
            Their indexes.
        """
        self.drawn += size
        return range(self.drawn - size, self.drawn)

    def abandon(self, size: int) -> None:
        """Count candidates that were begun one by one, and failed or are of no use any more."""
        self._client.metrics.aborted_candidates.inc(size)

    async def draw_one(self, index: int, watch: Callable[[Delta], None] | None = None) -> Turn:
        """Draw one candidate.

        Args:
            index: Its index.
            watch: Called with what is new, before its parts are separated.

        Raises:
            BadRequest: The engine does not accept the sampling.
            EngineError: The engine is alive but failed at this candidate.
            Unavailable: The engines are not up, or have died.
        """
        # The text of candidates that will be ranked is shown only when they are finished.
        live = self._listen and isinstance(self._job.procedure, Standard | Controlled)
        sampling = replace(self._job.sampling, seed=self._job.sampling.seed + index)

        def grow(delta: Delta) -> None:
            self.notify(CandidateDelta(index, delta))

        with self._tracing.span("generate", job_attributes(self._job, index)) as span:
            listener = grow if live else None
            if self._blocks:
                turn = await self._blocks.draw(sampling, listener)
            else:
                turn = await self._client.draw(self.prompt, sampling, listener, watch)
            span.set(turn_attributes(self.prompt, sampling, turn))
        return turn

    async def score_one(self, index: int, turn: Turn) -> Scores | None:
        """Score a candidate that is drawn.

        Args:
            index: Its index.
            turn: The candidate.

        Returns:
            Its rewards; None if it came to no answer.

        Raises:
            BadRequest: A reward model's chat template does not accept the conversation.
            EngineError: A reward model is alive but failed at this candidate.
            Unavailable: The engines are not up, or have died.
        """
        return None if turn.scored is None else (await self._score(index, turn.scored))[0]

    def add(self, index: int, turn: Turn, scores: Scores | None) -> None:
        """Add a candidate that is drawn and scored, or that came to no answer."""
        if scores is None:
            self._failure_codes[NoAnswer.code] += 1
            self.unanswered_tokens += turn.completion.tokens
        else:
            self._answered[index] = turn, scores

    def add_failure(self, failure: BaseException) -> None:
        """Note what a candidate has raised; a TimeoutError if time ran out."""
        self.errors.append(failure)
        self._failure_codes[failure_code(failure)] += 1

    def tell(self, index: int, turn: Turn, scores: Scores | None, standing: Standing) -> None:
        """Tell whoever listens that a candidate is drawn and scored."""
        self.notify(CandidateFinished(index, turn))
        if scores and self._listen:
            placement = standing.locate([scores.rewards])[0]
            self.notify(CandidateScored(self._candidate(index, turn, scores.unread, placement)))

    def notify(self, event: Event) -> None:
        """Tell whoever listens of an event."""
        if self._listen:
            self._listen(event)

    async def find_standing(self, until: float) -> Standing:
        """Wait for the prompt's calibration.

        Raises:
            TimeoutError: Time ran out.
            ServerError: It cannot be found.
        """
        async with asyncio.timeout_at(until):
            return await self._lookup

    def locate(self, standing: Standing) -> list[Candidate]:
        """Return the candidates that are scored so far, by index."""
        if not self._answered:
            return []
        answered = sorted(self._answered.items(), key=itemgetter(0))
        placements = standing.locate([scores.rewards for _, (_, scores) in answered])
        return [
            self._candidate(index, turn, scores.unread, placement)
            for (index, (turn, scores)), placement in zip(answered, placements, strict=True)
        ]

    def check_answers(self, rejected: int = 0) -> None:
        """Check that enough candidates came to an answer.

        Args:
            rejected: How many others were not drawn to the end. They count, except if no candidate has an answer.

        Raises:
            NoAnswer: Fewer than the job needs, as the reasoning of others was cut off.
        """
        count = len(self._answered)
        if self._failure_codes[NoAnswer.code] and (not count or count + rejected < self._job.answers):
            raise NoAnswer(
                f"max_tokens: of {self.drawn} responses, {count} came to an answer; reasoning takes more than "
                f"{self._job.sampling.max_tokens} tokens here",
                "max_tokens",
            )

    async def _run(self, index: int) -> tuple[Turn, Scores | None]:
        turn = await self.draw_one(index)
        self.notify(CandidateFinished(index, turn))
        scores, placement = (None, None) if turn.scored is None else await self._score(index, turn.scored)
        self._done_count += 1
        if scores and placement:
            self.notify(CandidateScored(self._candidate(index, turn, scores.unread, placement)))
        return turn, scores

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
