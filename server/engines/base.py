"""The protocol between the decoder and its engines. Cancelling a call aborts its work in the engine."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from infalign.manifest import SamplingLaw
from infalign.rewards.rubric import expected_score

LOWEST_LOGPROB = -9999.0
"""Stands for the log-probability of a token that cannot be drawn, as in OpenAI's answers."""
FinishReason = Literal["stop", "length"]
"""Why a complete response ended: at a stop token or string, or at its largest length."""


class EnginesDown(Exception):
    """The engines cannot answer: they are not started, stopped, hung or dead."""


class Refused(Exception):
    """An engine does not accept a request as it is.

    Args:
        message: Why.
        field: The request field at fault, if it is known.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RequestFailed(Exception):
    """A live engine failed at one request: a response did not end properly, or a score is not a number.

    Args:
        message: What happened.
        internal: Whether the engine met an error, rather than gave a result that cannot be used.
    """

    def __init__(self, message: str, internal: bool = False) -> None:
        super().__init__(message)
        self.internal = internal


def check_finish_reason(reason: str | None) -> FinishReason:
    """Check that a response is complete. An incomplete response must not be scored or shown.

    Args:
        reason: vLLM's finish reason.

    Returns:
        The same reason.

    Raises:
        EnginesDown: The engine aborted the request because it is being stopped.
        RequestFailed: The response ended in another way.
    """
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    if reason == "abort":
        raise EnginesDown("finish_reason 'abort': the engine is being stopped")
    raise RequestFailed(f"finish_reason {reason!r}, not stop or length", internal=reason == "error")


def check_logprob(value: float | None) -> float:
    """Check a log-probability. Returns it, or LOWEST_LOGPROB if it is lower.

    Raises:
        RequestFailed: It is not a number.
    """
    if value is None or math.isnan(value) or value == math.inf:
        raise RequestFailed(f"a log-probability of {value}")
    return max(value, LOWEST_LOGPROB)


def compute_reward(outputs: Sequence[float], values: Sequence[float]) -> float:
    """Compute the raw reward from the outputs of a reward model.

    Args:
        outputs: The model's outputs for one text, without an activation function.
        values: What the outputs are worth (:func:`infalign.files.score_values`); empty if the first is the reward.

    Returns:
        The first output, or the expected score of a judge.

    Raises:
        RequestFailed: There are too few outputs, or the reward is not a finite number.
    """
    if len(outputs) != (len(values) or 1):
        raise RequestFailed(f"{len(outputs)} outputs of a reward model that has {len(values) or 1}")
    reward = expected_score(outputs, values) if values else float(outputs[0])
    if not math.isfinite(reward):
        raise RequestFailed(f"a reward of {reward}")
    return reward


@dataclass(frozen=True, slots=True)
class Structure:
    """The form that a response must have."""

    kind: Literal["json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    """The JSON schema, for the kind ``json_schema``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one candidate is drawn. The fields mean the same as in vLLM's ``SamplingParams``.

    ``max_tokens`` counts the response only. ``top_k`` 0 keeps every token.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    policy: str | None
    """Name of the policy that draws. None means the reference."""
    min_p: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each with the number that is added to its logit."""
    logprobs: int | None = None
    """How many alternatives to each token are reported with their log-probabilities. None reports no logprobs at all.

    """
    structure: Structure | None = None
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the text."""
    reasoning_ended: bool | None = None
    """Whether the response starts after its reasoning, so that a structure holds from there. None leaves it to vLLM."""

    @classmethod
    def from_law(cls, law: SamplingLaw, *, policy: str | None, seed: int, **fields: Any) -> Self:
        """Create the sampling of a candidate from a sampling law, the bundle's default sampling parameters.

        Args:
            law: The sampling law.
            policy: Name of the policy that draws. None means the reference.
            seed: Seed of the candidate.
            fields: Further fields, which take precedence over the law's. A field that is None is left to the law.

        Example:
            >>> Sampling.from_law(SamplingLaw(max_tokens=64), policy="demo", seed=7, temperature=None).temperature
            1.0
        """
        overrides = {name: value for name, value in fields.items() if value is not None}
        return cls(**law.model_dump() | overrides, policy=policy, seed=seed)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken, so that the seed changes nothing."""
        return self.temperature == 0 or self.top_k == 1 or self.min_p == 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability, in nats, under the distribution it was sampled from.

    The log-probability is -9999 if the token cannot be drawn.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The most likely tokens at this position, with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of an unfinished response."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """Parts of tool calls, in the form of OpenAI's streams."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished response: its text, its length in tokens, and why it ended."""

    text: str
    tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class NextToken:
    """What the reference says of the next token of a text."""

    logprobs: tuple[float, ...]
    """Log-probability, in nats, of each token that was asked for. It is minus infinity if the token is impossible."""
    tokens: int
    """Tokens that were read and written."""
    cached_tokens: int = 0
    """Tokens of these that were not read again, because the prefix cache had them."""


class Engines(Protocol):
    """Policies that generate, and reward models that score."""

    @property
    def context(self) -> int:
        """Largest length of prompt and response together, in tokens, that the policies and all reward models accept."""

    async def start(self) -> None:
        """Start all engines, and raise what prevented it. If cancelled, it returns as soon as they can be stopped."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        """Draw one candidate.

        Args:
            prompt: Token ids of the prompt.
            sampling: How the candidate is drawn.
            listen: Called with the new text as the response grows.

        Returns:
            The finished response.

        Raises:
            EnginesDown: The policy cannot answer.
            Refused: The sampling is not accepted.
            RequestFailed: The policy is alive but failed at this request.
        """

    async def check_structure(self, structure: Structure) -> None:
        """Check that responses can be forced to have a structure. This happens before any response is drawn.

        Args:
            structure: The structure.

        Raises:
            Refused: They cannot, or the check takes too long.
            EnginesDown: The check is not possible now.
        """

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        """Score one conversation with each reward model.

        Args:
            tokens: Token ids of the conversation with its response, as each reward model tokenizes it.

        Returns:
            The raw reward of each model, without an activation function.

        Raises:
            EnginesDown: A reward model cannot answer.
            RequestFailed: A reward model is alive but failed at this request.
        """

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int]) -> NextToken:
        """Ask the reference for the log-probabilities of some tokens as the next one.

        Args:
            prompt: Token ids of the text. It must be shorter than the context.
            tokens: The tokens, at most :data:`infalign.rewards.records.MOST_SCORES` of them.

        Raises:
            EnginesDown: The reference cannot answer.
            RequestFailed: The reference is alive but failed at this request.
        """

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        """Read a prompt and the beginning of a response with the prefix scorer.

        Args:
            tokens: Token ids of the prompt and of the response so far. The scorer has the policy's tokens.

        Returns:
            The outputs at the last token, without an activation function (:class:`infalign.PrefixScorer` reads them).

        Raises:
            EnginesDown: The prefix scorer cannot answer, or there is none.
            RequestFailed: The prefix scorer is alive but failed at this request.
        """

    async def load(self, policy: str, adapter: Path) -> None:
        """Load an adapter as a further policy.

        Args:
            policy: Name of the policy.
            adapter: Directory of the LoRA adapter.

        Raises:
            EnginesDown: The policy's engine cannot answer.
            Refused: The adapter cannot be loaded.
        """

    async def unload(self, policy: str) -> None:
        """Unload an adapter that no request uses. Engines that are down will start again without it.

        Args:
            policy: Name of the policy.
        """

    async def check(self) -> None:
        """Check that the engines that run all the time can answer.

        Raises:
            EnginesDown: One of them cannot.
        """

    async def discard_failed(self) -> list[EnginesDown]:
        """Stop engines that have died or hang, among those that are started when they are needed.

        Whoever needs such an engine next starts another. The others go on.

        Returns:
            What has happened to each.
        """

    def stop(self) -> None:
        """Stop all engines. Blocks until they have ended."""
