"""Decoding: draw N candidates, score each as it finishes, rank them, say where their rewards stand."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infalign.calibration import Calibration
from infalign.combination import Combination
from infalign.procedures import FixedN, Standard
from server.account import decoding, engine_call
from server.calibrator import Calibrator, Found
from server.concurrency import at_least, together
from server.decoding.reader import Conversation, Prompt
from server.drift import Drift
from server.engines import Completion, Delta, Sampling
from server.errors import DeadlineExceeded
from server.failures import code_of
from server.metrics import Metrics
from server.protocol.answers import Candidate, Scored
from server.sampler import Sampler, Scores
from server.tracing import Tracing


@dataclass(frozen=True)
class Job:
    """What the decoder is asked for."""

    conversation: Conversation
    procedure: FixedN
    sampling: Sampling
    """Candidate i is drawn with ``sampling.seed + i``."""
    draws: int
    """N; under standard decoding several draws are several answers, unranked."""
    fewest: int
    """Scored candidates that are enough, where others fail or time runs out."""
    seconds: float
    """Until when it must be done."""
    calibrate: bool = False
    """Calibrate the prompt first, where it is not."""
    top: int = 1
    """Candidates that are selected."""
    sees_all: bool = True
    """Whether the caller may see candidates of the lower half."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A candidate's text has grown."""

    index: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Finished:
    """A candidate is drawn, not yet scored."""

    index: int
    completion: Completion


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate is scored."""

    candidate: Candidate


Event = Grown | Finished | Judged


@dataclass(frozen=True)
class Decoded:
    """The candidates of one job, selected first, and the calibration their quantiles come from."""

    ranked: list[Candidate]
    calibration: Calibration
    prompt_tokens: int
    failures: dict[str, int]
    """Candidates that there are none of, by the code of the error."""

    @property
    def in_drawn_order(self) -> list[Candidate]:
        """The candidates by index."""
        return sorted(self.ranked, key=lambda candidate: candidate.index)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all candidates."""
        return sum(candidate.completion_tokens for candidate in self.ranked)


@dataclass(frozen=True)
class Standing:
    """Where rewards of one prompt's responses stand."""

    reward_models: tuple[str, ...]
    key: str
    combination: Combination
    calibration: Calibration

    def of(self, rewards: list[list[float]]) -> list[Scored]:
        """Combined rewards and their quantiles; with several models, what each said too."""
        combined = self.combination.combine([self.key] * len(rewards), rewards)
        low, high = self.calibration.interval(combined)
        rows = np.stack([combined, self.calibration.quantile(combined), low, high], axis=1).tolist()
        return [
            Scored(
                index=index,
                reward=reward,
                rewards=dict(zip(self.reward_models, raw, strict=True)) if len(raw) > 1 else None,
                quantile=quantile,
                quantile_low=bottom,
                quantile_high=top,
            )
            for index, ((reward, quantile, bottom, top), raw) in enumerate(zip(rows, rewards, strict=True))
        ]


class Decoder:
    """Best-of-N and worst-of-N."""

    def __init__(
        self, sampler: Sampler, calibrator: Calibrator, metrics: Metrics, drift: Drift, tracing: Tracing
    ) -> None:
        self.sampler, self.calibrator, self.metrics, self.drift = sampler, calibrator, metrics, drift
        self.tracing = tracing

    async def decode(self, job: Job, listen: Callable[[Event], None] | None = None) -> Decoded:
        """Draw the candidates and rank them by the procedure; ``listen`` is told what happens on the way.

        Raises:
            PromptTooLong: prompt and response do not fit the context of policy or reward models.
            BadRequest: a chat template does not accept the messages, or the engine the sampling.
            EngineError: a live engine failed at too many candidates.
            Unavailable: the engines are not up, or died.
            DeadlineExceeded: the time was up before enough candidates were scored.
        """
        until = asyncio.get_running_loop().time() + job.seconds
        try:
            async with asyncio.timeout_at(until):
                prompt = await self.sampler.reader.read(job.conversation, job.sampling.max_tokens)
                if job.sampling.structure:
                    await self.sampler.check_structure(job.sampling.structure)
        except TimeoutError as error:
            raise _late(job) from error
        label = job.procedure.family
        decoding(job.procedure, job.draws, job.sampling.policy, prompt.rendering.text)
        self.metrics.requested.labels(label).observe(job.draws)
        with self.metrics.in_flight.track_inprogress(), self.metrics.request_seconds.labels(label).time():
            # Looked up while the candidates are drawn; a prompt that cannot be calibrated is refused before.
            lookup = asyncio.create_task(self._standing(prompt, job.calibrate))
            try:
                if job.calibrate:
                    async with asyncio.timeout_at(until):
                        await lookup
                candidates, failures = await self._candidates(job, prompt, lookup, until, listen)
                standing = lookup.result()
            except TimeoutError as error:
                raise _late(job) from error
            finally:
                lookup.cancel()
        order = job.procedure.ranking([candidate.reward for candidate in candidates])
        decoded = Decoded([candidates[i] for i in order], standing.calibration, len(prompt.tokens), failures)
        self._observe(decoded, label)
        if not failures:
            rewards = [candidate.reward for candidate in decoded.ranked]
            self.drift.observe(job.sampling, prompt.key, standing.calibration, rewards)
        return decoded

    async def rewards(
        self, conversation: Conversation, responses: Sequence[str], calibrate: bool = False
    ) -> tuple[list[Scored], Calibration]:
        """Reward and quantile of given responses, in their order.

        Raises:
            PromptTooLong: the prompt or a response does not fit the reward models' context.
            BadRequest: a chat template does not accept the messages.
            EngineError: a live engine failed at a response.
            Unavailable: the engines are not up, or died.
        """
        # The prompt alone first: one that is too long is refused before its responses are read.
        prompt = await self.sampler.reader.read(conversation, 0)
        rewards = await together([self.sampler.score(conversation, response) for response in responses])
        standing = await self._standing(prompt, calibrate)
        return standing.of(rewards), standing.calibration

    async def calibrate(self, conversation: Conversation) -> Found:
        """Reference rewards for a prompt, drawn now where there are none.

        Raises:
            PromptTooLong: prompt and response do not fit the context under the calibration's sampling law.
            EngineError: a live engine failed at a response.
            Unavailable: the engines are not up, or died.
        """
        return await self._found(await self.sampler.reader.read(conversation, 0), calibrate=True)

    async def _standing(self, prompt: Prompt, calibrate: bool) -> "Standing":
        with self.tracing.span("calibration") as span:
            found = await self._found(prompt, calibrate)
            calibration = found.calibration
            span.set(
                {"infalign.calibration.scope": calibration.scope, "infalign.calibration.samples": calibration.samples}
            )
        return Standing(self.sampler.reward_models, prompt.key, found.combination, calibration)

    async def _found(self, prompt: Prompt, calibrate: bool) -> Found:
        if calibrate:
            with engine_call():  # perhaps of another request, which draws for both
                found = await self.calibrator.calibrate(prompt)
        else:
            found = await self.calibrator.find(prompt)
        self.metrics.calibrations.labels(found.calibration.scope, found.source).inc()
        return found

    async def _candidates(
        self,
        job: Job,
        prompt: Prompt,
        lookup: "asyncio.Task[Standing]",
        until: float,
        listen: Callable[[Event], None] | None,
    ) -> tuple[list[Candidate], dict[str, int]]:
        """Those that were scored in time, in drawn order, and how many were not, by the reason."""

        def candidate(index: int, completion: Completion, unread: int, scored: Scored) -> Candidate:
            return Candidate(
                **vars(scored) | {"index": index},
                unread_tokens=unread or None,
                text=completion.text,
                finish_reason=completion.finish_reason,
                completion_tokens=completion.tokens,
                seed=job.sampling.seed + index,
                logprobs=completion.logprobs,
            )

        done = 0
        tell = listen or (lambda _: None)
        live = listen is not None and isinstance(job.procedure, Standard)  # ranked candidates are told of when whole

        async def draw(index: int) -> tuple[Completion, Scores]:
            nonlocal done
            sampling = replace(job.sampling, seed=job.sampling.seed + index)
            asked = _asked(job, index)
            grown = (lambda delta: tell(Grown(index, delta))) if live else None
            with self.tracing.span("generate", asked) as span:
                completion = await self.sampler.draw(prompt, sampling, grown)
                span.set(_generated(prompt, sampling, completion))
            tell(Finished(index, completion))
            with self.tracing.span("score", asked) as span:
                scores = await self.sampler.score_candidate(job.conversation, completion.text)
                if listen or span.recording:
                    standing = await asyncio.shield(lookup)  # one candidate's end must not end it for the others
                    scored = standing.of([scores.rewards])[0]
                    span.set(_scored(scored))
            done += 1
            if listen:
                listen(Judged(candidate(index, completion, scores.unread, scored)))
            return completion, scores

        try:
            gathered = await at_least(job.fewest, [draw(index) for index in range(job.draws)], until)
        finally:
            self.metrics.aborted.inc(job.draws - done)
        async with asyncio.timeout_at(until):
            standing = await lookup
        scored = standing.of([scores.rewards for _, scores in gathered.results.values()])
        found = [
            candidate(index, completion, scores.unread, where)
            for (index, (completion, scores)), where in zip(gathered.results.items(), scored, strict=True)
        ]
        return found, dict(Counter(map(code_of, gathered.failures)))

    def _observe(self, decoded: Decoded, label: str) -> None:
        metrics, scope = self.metrics, decoded.calibration.scope
        metrics.candidates.labels(label).inc(len(decoded.ranked))
        metrics.candidate_tokens.labels(label).inc(decoded.completion_tokens)
        metrics.selected_quantiles.labels(label, scope).observe(decoded.ranked[0].quantile)
        for candidate in decoded.ranked:
            metrics.quantiles.labels(scope).observe(candidate.quantile)
        distinct = len({candidate.reward for candidate in decoded.ranked})
        metrics.ties.inc(len(decoded.ranked) - distinct)


def _asked(job: Job, index: int) -> dict[str, Any]:
    """Attributes of spans, by OpenTelemetry's names where there are any."""
    return {
        "infalign.index": index,
        "infalign.procedure": str(job.procedure),
        "infalign.n": job.draws,
        "gen_ai.operation.name": "chat" if job.conversation.messages else "text_completion",
        "gen_ai.provider.name": "infalign",
        "gen_ai.request.model": job.sampling.policy,
    }


def _generated(prompt: Prompt, sampling: Sampling, completion: Completion) -> dict[str, Any]:
    return {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.response.finish_reasons": [completion.finish_reason],
        "gen_ai.usage.input_tokens": len(prompt.tokens),
        "gen_ai.usage.output_tokens": completion.tokens,
    }


def _scored(scored: Scored) -> dict[str, Any]:
    return {"infalign.reward": scored.reward, "infalign.quantile": scored.quantile}


def _late(job: Job) -> DeadlineExceeded:
    return DeadlineExceeded(f"not done within {job.seconds:g} s; ask for fewer candidates or tokens, or more time")
