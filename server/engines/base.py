"""What the decoder asks of engines. Cancelling a call aborts its work in the engine."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

LOWEST_LOGPROB = -9999.0
"""Stands for the log-probability of a token that cannot be drawn, as in OpenAI's answers."""
End = Literal["stop", "length"]
"""How a draw ends properly."""


class EnginesDown(Exception):
    """The engines cannot answer: not started, stopped, hung or dead."""


class Refused(Exception):
    """The engine does not accept a request as it is; the text says why.

    ``field`` is the request field that it is about, where that is known.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RequestFailed(Exception):
    """An engine lives, but failed at one request: a draw that did not end properly, a score that is no number.

    ``internal`` says that the engine met an error at it, rather than gave a result that cannot be used.
    """

    def __init__(self, message: str, internal: bool = False) -> None:
        super().__init__(message)
        self.internal = internal


def proper_end(reason: str | None) -> End:
    """The finish reason of a draw that is a response. What ends in any other way must not be scored or shown.

    Raises:
        EnginesDown: the engine gave the draw up, as one does that is being stopped.
        RequestFailed: the draw ended in another way.
    """
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    if reason == "abort":
        raise EnginesDown("finish_reason 'abort': the engine is being stopped")
    raise RequestFailed(f"finish_reason {reason!r}, not stop or length", internal=reason == "error")


def finite_logprob(value: float | None) -> float:
    """A log-probability as it is passed on, at least LOWEST_LOGPROB.

    Raises:
        RequestFailed: it is not a number.
    """
    if value is None or math.isnan(value) or value == math.inf:
        raise RequestFailed(f"a log-probability of {value}")
    return max(value, LOWEST_LOGPROB)


def finite_reward(value: float) -> float:
    """A raw reward. Raises RequestFailed if it is not a finite number."""
    if not math.isfinite(value):
        raise RequestFailed(f"a reward of {value}")
    return value


@dataclass(frozen=True, slots=True)
class Structure:
    """The form that a response must have."""

    kind: Literal["json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    """JSON schema, where there is one."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one candidate is drawn; ``max_tokens`` counts the response only, ``top_k`` 0 keeps every token."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    policy: str | None
    """Name of the one that draws; the reference if None."""
    min_p: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids with what is added to their logits."""
    logprobs: int | None = None
    """How many alternatives to each token are reported with their log-probabilities; no log-probabilities if None."""
    structure: Structure | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability in nats, under the law that was sampled from; -9999 if it cannot be drawn."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens in its place."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What an unfinished response has gained."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished response: text without special tokens, its length in tokens, how it ended."""

    text: str
    tokens: int
    finish_reason: End
    logprobs: tuple[TokenLogprob, ...] | None = None


class Engines(Protocol):
    """Policies that generate and reward models that score."""

    @property
    def context(self) -> int:
        """Tokens that prompt and response may have together, in the policies and in every reward model."""

    async def start(self) -> None:
        """Bring all up; raises what stopped them. Once cancelled it ends as soon as they can be stopped."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        """Draw one candidate; ``listen`` is told of its text as it grows.

        Raises:
            EnginesDown: the policy cannot answer.
            Refused: the sampling is not accepted.
            RequestFailed: the policy can answer, but not this.
        """

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        """Raw reward of a whole conversation by each reward model, no activation applied.

        ``tokens`` are the conversation as each of them reads it.

        Raises:
            EnginesDown: a reward model cannot answer.
            RequestFailed: a reward model can answer, but not this.
        """

    async def load(self, policy: str, adapter: Path) -> None:
        """Make an adapter the policy of that name. Raises EnginesDown, or Refused if it cannot be."""

    async def unload(self, policy: str) -> None:
        """Forget an adapter that no request uses; engines that are down come back without it."""

    async def check(self) -> None:
        """Raise EnginesDown unless all can answer."""

    def stop(self) -> None:
        """Shut all down."""
