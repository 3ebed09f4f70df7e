"""Decoding: draw N candidates, score them, rank them, and compute the quantiles of their rewards."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from infalign.calibration import Calibration
from infalign.controlled import Controlled
from infalign.stopping import Target
from server.concurrency import gather_all
from server.decoding.blocks import Blocks
from server.decoding.calibrator import Calibrator, ReferenceRewards
from server.decoding.candidates import Candidates
from server.decoding.drift import Drift
from server.decoding.engine_client import EngineClient
from server.decoding.jobs import DecodingResult, Event, Job, Rejections
from server.decoding.prefixes import Prefixes
from server.decoding.rank_laws import RankLaws
from server.decoding.reader import Conversation, Prompt
from server.decoding.regret import Regret
from server.decoding.rounds import Rounds
from server.decoding.standing import Standing
from server.decoding.waves import Stop, Waves
from server.errors import DeadlineExceeded
from server.observability.account import engine_call, note_decoding
from server.observability.metrics import Metrics
from server.observability.tracing import Tracing
from server.protocol.answers import Candidate, Scored, Stopping
from server.protocol.fields import Calibrate


class Decoder:
    """Decodes by best-of-N, worst-of-N, controlled or standard decoding.

    Args:
        client: Draws and scores single candidates.
        calibrator: Finds the prompts' calibrations.
        metrics: Observes candidates and durations.
        drift: Watches the quantiles of each policy.
        laws: Predicts the ranks of each policy's candidates.
        regret: Measures what stopping early costs.
        tracing: Gets spans of calibrations, draws and scores.
        prefixes: Reads the beginnings of responses, if the bundle has a prefix scorer.
    """

    def __init__(
        self,
        client: EngineClient,
        calibrator: Calibrator,
        metrics: Metrics,
        drift: Drift,
        laws: RankLaws,
        regret: Regret,
        tracing: Tracing,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.client, self.calibrator, self.metrics, self.drift = client, calibrator, metrics, drift
        self.laws, self.regret, self.tracing, self.prefixes = laws, regret, tracing, prefixes

    async def decode(self, job: Job, listen: Callable[[Event], None] | None = None) -> DecodingResult:
        """Draw candidates, score them, and rank them by the procedure.

        Args:
            job: What to decode.
            listen: Called with every event meanwhile.

        Returns:
            The ranked candidates.

        Raises:
            PromptTooLong: Prompt and response do not fit the context of the policy or a reward model.
            BadRequest: A chat template does not accept the messages, or the engine does not accept the sampling.
            EngineError: A live engine failed at too many candidates.
            Unavailable: The engines are not up, or have died.
            DeadlineExceeded: Time ran out before enough candidates were scored.
        """
        until = asyncio.get_running_loop().time() + job.seconds
        try:
            async with asyncio.timeout_at(until):
                prompt = await self.client.reader.read(job.conversation, job.sampling.max_tokens)
                if job.sampling.structure:
                    await self.client.check_structure(job.sampling.structure)
        except TimeoutError as error:
            raise _deadline_exceeded(job) from error
        label = job.procedure.family
        note_decoding(job.procedure, job.draws, job.sampling.policy, prompt.rendering.text)
        self.metrics.n_requested.labels(label).observe(job.draws)
        with self.metrics.in_flight.track_inprogress(), self.metrics.request_seconds.labels(label).time():
            # The lookup runs while candidates are drawn. A prompt that cannot be calibrated is refused first.
            lookup = asyncio.create_task(self._look_up_standing(prompt, job.calibrate))
            try:
                if job.calibrate:
                    async with asyncio.timeout_at(until):
                        await lookup
                blocks = self._make_blocks(job, prompt, lookup)
                group = Candidates(job, prompt, lookup, self.client, self.tracing, listen, blocks)
                stop, rejections = None, Rejections() if job.early_rejection else None
                if job.rejects and self.prefixes:
                    rounds = Rounds(job, group, self.prefixes, self.laws)
                    candidates, stop, rejections = await rounds.gather(until)
                elif job.rule is None:
                    candidates = await group.gather(until)
                else:
                    candidates, stop = await Waves(job, group, self.laws).gather(until)
                standing = lookup.result()
            except TimeoutError as error:
                raise _deadline_exceeded(job) from error
            finally:
                lookup.cancel()
        order = job.procedure.ranking([candidate.reward for candidate in candidates])
        ranked = [candidates[i] for i in order]
        stopping = await self._describe(stop, job, ranked[0], standing) if stop else None
        result = DecodingResult(
            ranked,
            standing.calibration,
            len(prompt.tokens),
            group.failures,
            stopping,
            rejections,
            blocks.drawn_tokens if blocks else None,
            group.unanswered_tokens,
        )
        self._record_metrics(result, label)
        if not (group.failures or blocks or job.rejects):
            # Later waves are drawn only for prompts whose anchors were hard to beat, which would bias the drift.
            # Answers of controlled decoding are selected, so they do not show what the policy draws.
            unbiased = stop.waves[0] if stop and stop.waves else job.draws
            rewards = [candidate.reward for candidate in candidates if candidate.index < unbiased]
            self.drift.observe(job.sampling, prompt.key, standing.calibration, rewards)
        self._consider_regret(job, prompt, standing, result)
        return result

    async def score(
        self, conversation: Conversation, responses: Sequence[str], calibrate: Calibrate = False
    ) -> tuple[list[Scored], Calibration]:
        """Score given responses.

        Args:
            conversation: What the responses answer.
            responses: The responses.
            calibrate: What to do first if the prompt is not calibrated.

        Returns:
            Reward and quantile of each response, in order, and the calibration of the quantiles.

        Raises:
            PromptTooLong: The prompt or a response does not fit the reward models' context.
            BadRequest: A chat template does not accept the messages.
            EngineError: A live engine failed at a response.
            Unavailable: The engines are not up, or have died.
        """
        # A prompt that is too long is refused before its responses are read.
        prompt = await self.client.reader.read(conversation, 0)
        rewards = await gather_all([self.client.score(conversation, response) for response in responses])
        standing = await self._look_up_standing(prompt, calibrate)
        return standing.locate(rewards), standing.calibration

    async def calibrate(self, conversation: Conversation) -> ReferenceRewards:
        """Return the reference rewards for a prompt. Draw them now if there are none.

        Raises:
            PromptTooLong: Prompt and response do not fit the context under the calibration's sampling law.
            EngineError: A live engine failed at a response.
            Unavailable: The engines are not up, or have died.
        """
        return await self._look_up_rewards(await self.client.reader.read(conversation, 0), calibrate=True)

    def _make_blocks(self, job: Job, prompt: Prompt, lookup: "asyncio.Task[Standing]") -> Blocks | None:
        if not (isinstance(job.procedure, Controlled) and self.prefixes):
            return None
        return Blocks(job.procedure, prompt, lookup, self.client, self.prefixes, self.laws, self.tracing)

    async def _look_up_standing(self, prompt: Prompt, calibrate: Calibrate) -> Standing:
        with self.tracing.span("calibration") as span:
            references = await self._look_up_rewards(prompt, calibrate)
            calibration = references.calibration
            span.set(
                {"infalign.calibration.scope": calibration.scope, "infalign.calibration.samples": calibration.samples}
            )
        return Standing(self.client.reward_models, prompt.key, references.combination, calibration)

    async def _look_up_rewards(self, prompt: Prompt, calibrate: Calibrate) -> ReferenceRewards:
        if calibrate == "predict" and self.prefixes:
            references = await self.calibrator.predict(prompt, self.prefixes)
        elif calibrate is True:
            with engine_call():  # the draws may be those of another request
                references = await self.calibrator.calibrate(prompt)
        else:
            references = await self.calibrator.find(prompt)
        self.metrics.calibrations.labels(references.calibration.scope, references.source).inc()
        return references

    async def _describe(self, stop: Stop, job: Job, selected: Candidate, standing: Standing) -> Stopping:
        """Describe for the client when draws stopped, and how sure the selected candidate is."""
        miss_probability: float | None = None
        basis: Literal["prompt", "predicted", "pooled"] | None = None
        scope = standing.calibration.scope
        if isinstance(stop.rule, Target) and scope != "global":
            miss_probability, basis = stop.rule.miss_probability(selected.reward, standing.calibration), scope
        elif isinstance(stop.rule, Target):
            pooled = await self.calibrator.pooled_quantiles()
            miss_probability, basis = pooled.miss_probability(selected.quantile, stop.rule), "pooled"
        return Stopping(
            reason=stop.reason,
            drawn=stop.drawn,
            asked=job.draws,
            waves=len(stop.waves) if stop.waves else None,
            threshold=stop.rule.stop_quantile(standing.calibration) if stop.rule else None,
            miss_probability=miss_probability,
            basis=basis,
        )

    def _consider_regret(self, job: Job, prompt: Prompt, standing: Standing, result: DecodingResult) -> None:
        """Perhaps measure what was lost by drawing less than all N candidates to the end."""
        stopping, rejections = result.stopping, result.rejections or Rejections()
        reason = stopping.reason if stopping else "cap"
        if reason in ("target", "cost") or (job.rejects and reason == "cap"):
            undrawn = range(stopping.drawn if stopping else job.draws, job.draws)
            indexes = [*rejections.rejected, *rejections.aborted, *undrawn]
            self.regret.consider(job, prompt, standing, indexes, result.candidates[0].quantile)

    def _record_metrics(self, result: DecodingResult, label: str) -> None:
        metrics, scope = self.metrics, result.calibration.scope
        metrics.candidates.labels(label).inc(len(result.candidates))
        metrics.candidate_tokens.labels(label).inc(result.completion_tokens)
        metrics.selected_quantiles.labels(label, scope).observe(result.candidates[0].quantile)
        for candidate in result.candidates:
            metrics.quantiles.labels(scope).observe(candidate.quantile)
        distinct = len({candidate.reward for candidate in result.candidates})
        metrics.ties.inc(len(result.candidates) - distinct)
        if stopping := result.stopping:
            metrics.stops.labels(label, stopping.reason).inc()
            if stopping.waves:
                metrics.waves.observe(stopping.waves)
            if stopping.reason != "timeout":
                saved_draws = stopping.asked - stopping.drawn
                metrics.saved_draws.inc(saved_draws)
                metrics.saved_tokens.labels("stopping").inc(saved_draws * result.mean_tokens)
        if rejections := result.rejections:
            metrics.rejected_candidates.labels(label).inc(len(rejections.rejected))
            for by, lengths in (("rejection", rejections.rejected), ("stopping", rejections.aborted)):
                saved = sum(result.mean_tokens - tokens for tokens in lengths.values())
                metrics.saved_tokens.labels(by).inc(max(saved, 0))


def _deadline_exceeded(job: Job) -> DeadlineExceeded:
    return DeadlineExceeded(f"not done within {job.seconds:g} s; ask for fewer candidates or tokens, or more time")
