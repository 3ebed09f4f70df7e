"""Decoding: draw N candidates, score each as it finishes, rank them, say where their rewards stand."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from infalign.calibration import Calibration
from infalign.combination import Combination
from infalign.manifest import SamplingLaw
from infalign.procedures import FixedN
from infalign.templates import Message, prompt_key, render_judged, render_prompt, tokenise
from server.concurrency import together
from server.engines import Completion, Engines, EnginesDown, Sampling
from server.errors import PromptTooLong, Unavailable
from server.metrics import Metrics
from server.protocol import Candidate, Scored

T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """What is answered: chat messages, or a raw prompt (then ``messages`` is empty)."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""

    @property
    def field(self) -> str:
        """The request field it came from."""
        return "messages" if self.messages else "prompt"


@dataclass(frozen=True)
class Decoded:
    """All candidates of one request, selected first, and the calibration their quantiles come from."""

    ranked: list[Candidate]
    calibration: Calibration
    prompt_tokens: int

    @property
    def in_drawn_order(self) -> list[Candidate]:
        """The candidates by index."""
        return sorted(self.ranked, key=lambda candidate: candidate.index)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all candidates."""
        return sum(candidate.completion_tokens for candidate in self.ranked)


class Decoder:
    """Best-of-N and worst-of-N over engines that it knows only by their protocol.

    Args:
        engines: policy and reward models.
        tokenizers: of the policy, and of the reward models by name, in the order of their calibrations.
        combination: the bundle's calibrations.
        law: the bundle's sampling law, the default of every request.
    """

    def __init__(
        self,
        engines: Engines,
        tokenizers: tuple[Any, Mapping[str, Any]],
        combination: Combination,
        law: SamplingLaw,
        metrics: Metrics,
    ) -> None:
        self.engines, self.combination, self.law, self.metrics = engines, combination, law, metrics
        self.table = combination.table  # now, not within the first request
        self._policy_tokenizer, self._reward_tokenizers = tokenizers

    async def decode(
        self, conversation: Conversation, procedure: FixedN, sampling: Sampling, draws: int | None = None
    ) -> Decoded:
        """Draw candidates (candidate i with ``sampling.seed + i``) and rank them by the procedure.

        ``draws`` is ``procedure.n`` unless given: standard decoding may return several draws, unranked.

        Raises:
            PromptTooLong: prompt and response do not fit the context of policy or reward models.
            Unavailable: the engines are not up, or died.
        """
        rendered = self._rendered(conversation)
        prompt = tokenise(self._policy_tokenizer, rendered)
        longest = max(map(len, (prompt, *self._judged_tokens(conversation, ""))))
        self._check_length(conversation, longest, sampling.max_tokens)
        calibration = self._calibration(rendered)
        n, label = draws or procedure.n, procedure.family
        self.metrics.requested.labels(label).observe(n)
        with self.metrics.in_flight.track_inprogress(), self.metrics.request_seconds.labels(label).time():
            drawn = await self._draw_all(conversation, prompt, n, sampling)
        candidates = [
            Candidate(
                **scored.model_dump(),
                text=completion.text,
                finish_reason=completion.finish_reason,
                completion_tokens=completion.tokens,
                seed=sampling.seed + scored.index,
            )
            for (completion, _), scored in zip(
                drawn, self._place(rendered, [rewards for _, rewards in drawn], calibration), strict=True
            )
        ]
        decoded = Decoded(
            [candidates[i] for i in procedure.ranking([candidate.reward for candidate in candidates])],
            calibration,
            len(prompt),
        )
        self._observe(decoded, label)
        return decoded

    async def rewards(self, conversation: Conversation, responses: Sequence[str]) -> tuple[list[Scored], Calibration]:
        """Reward and quantile of given responses, in their order.

        Raises:
            PromptTooLong: a response does not fit the reward models' context.
            Unavailable: the engines are not up, or died.
        """
        rewards = await together([self._score(conversation, response) for response in responses])
        rendered = self._rendered(conversation)
        calibration = self._calibration(rendered)
        return self._place(rendered, rewards, calibration), calibration

    async def _draw_all(
        self, conversation: Conversation, prompt: list[int], n: int, sampling: Sampling
    ) -> list[tuple[Completion, list[float]]]:
        finished = 0

        async def draw(index: int) -> tuple[Completion, list[float]]:
            nonlocal finished
            with self.metrics.generation_seconds.time():
                completion = await self._engine(
                    self.engines.generate(prompt, replace(sampling, seed=sampling.seed + index))
                )
            rewards = await self._score(conversation, completion.text)
            finished += 1
            return completion, rewards

        try:
            return await together([draw(index) for index in range(n)])
        finally:
            self.metrics.aborted.inc(n - finished)

    async def _score(self, conversation: Conversation, response: str) -> list[float]:
        """Raw rewards, one of each model."""
        tokens = self._judged_tokens(conversation, response)
        longest = max(map(len, tokens))
        if longest > self.engines.context:
            raise PromptTooLong(
                f"{conversation.field}: with its response it takes {longest} tokens, "
                f"the reward model reads at most {self.engines.context}",
                conversation.field,
            )
        with self.metrics.scoring_seconds.time():
            return await self._engine(self.engines.score(tokens))

    async def _engine(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except EnginesDown as error:
            raise Unavailable(f"the engines cannot answer: {error}") from error

    def _rendered(self, conversation: Conversation) -> str:
        if conversation.messages:
            return render_prompt(self._policy_tokenizer, conversation.messages)
        return conversation.prompt

    def _judged_tokens(self, conversation: Conversation, response: str) -> list[list[int]]:
        """What each reward model reads. A raw prompt is continued as it stands, and ended as a turn is."""
        read = []
        for tokenizer in self._reward_tokenizers.values():
            if conversation.messages:
                rendered = render_judged(tokenizer, conversation.messages, response)
            else:
                rendered = conversation.prompt + response + tokenizer.eos_token
            read.append(tokenise(tokenizer, rendered))
        return read

    def _place(self, rendered: str, rewards: list[list[float]], calibration: Calibration) -> list[Scored]:
        """Combined rewards and their quantiles; with several models, what each said too."""
        names = list(self._reward_tokenizers)
        combined = self.combination.combine([prompt_key(rendered)] * len(rewards), rewards)
        low, high = calibration.interval(combined)
        rows = np.stack([combined, calibration.quantile(combined), low, high], axis=1).tolist()
        return [
            Scored(
                index=index,
                reward=reward,
                rewards=dict(zip(names, raw, strict=True)) if len(names) > 1 else None,
                quantile=quantile,
                quantile_low=bottom,
                quantile_high=top,
            )
            for index, ((reward, quantile, bottom, top), raw) in enumerate(zip(rows, rewards, strict=True))
        ]

    def _check_length(self, conversation: Conversation, prompt: int, response: int) -> None:
        if prompt + response > self.engines.context:
            raise PromptTooLong(
                f"{conversation.field}: {prompt} tokens and {response} for the response (max_tokens) make "
                f"{prompt + response}, accepted: at most {self.engines.context} together",
                conversation.field,
            )

    def _calibration(self, rendered: str) -> Calibration:
        calibration = self.table.lookup(prompt_key(rendered))
        self.metrics.calibrations.labels(calibration.scope).inc()
        return calibration

    def _observe(self, decoded: Decoded, label: str) -> None:
        metrics, scope = self.metrics, decoded.calibration.scope
        metrics.candidates.labels(label).inc(len(decoded.ranked))
        metrics.candidate_tokens.labels(label).inc(decoded.completion_tokens)
        metrics.selected_quantiles.labels(label, scope).observe(decoded.ranked[0].quantile)
        for candidate in decoded.ranked:
            metrics.quantiles.labels(scope).observe(candidate.quantile)
        distinct = len({candidate.reward for candidate in decoded.ranked})
        metrics.ties.inc(len(decoded.ranked) - distinct)
