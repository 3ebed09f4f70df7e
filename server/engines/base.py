"""What the decoder asks of engines. Cancelling a call aborts its work in the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class EnginesDown(Exception):
    """The engines cannot answer: not started, stopped or dead."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one candidate is drawn; ``max_tokens`` counts the response only, ``top_k`` 0 keeps every token."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    policy: str
    """Name of the one that draws."""
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished response: text without special tokens, its length in tokens, ``stop`` or ``length``."""

    text: str
    tokens: int
    finish_reason: str


class Engines(Protocol):
    """Policies that generate and reward models that score."""

    context: int
    """Tokens that prompt and response may have together, in the policies and in every reward model."""

    async def start(self) -> None:
        """Bring all up; raises what stopped them."""

    async def generate(self, prompt: list[int], sampling: Sampling) -> Completion:
        """Draw one candidate. Raises EnginesDown."""

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        """Raw reward of a whole conversation by each reward model, no activation applied. Raises EnginesDown.

        ``tokens`` are the conversation as each of them reads it.
        """

    async def check(self) -> None:
        """Raise EnginesDown unless all can answer."""

    def stop(self) -> None:
        """Shut all down."""
