"""The protocol of rewards that are not classifiers, and their error."""

import math
from collections.abc import Sequence
from typing import Protocol

from infalign.errors import InfAlignError
from infalign.templates import Message


class RewardFailed(InfAlignError):
    """A function, a service or a judge gave no reward for a response. The message names no address.

    Args:
        message: What happened.
        is_of_content: Whether it may be due to what was scored. Otherwise the reward was down or slow.
    """

    def __init__(self, message: str, is_of_content: bool = True) -> None:
        super().__init__(message)
        self.is_of_content = is_of_content


class OpenReward(Protocol):
    """A reward that is ready to score. It may be called from several threads, one call at a time."""

    @property
    def batch(self) -> int:
        """The most responses of one call."""

    @property
    def tokens(self) -> int:
        """Tokens that a judge has read and written so far; 0 for every other reward."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of these that the judge's server did not read again, as far as it says so."""

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """Score a batch of responses.

        Args:
            prompts: Conversations.
            responses: A response to each of them.

        Returns:
            A finite number for each response. Higher is better.

        Raises:
            RewardFailed: There is none for at least one of them.
        """

    def close(self) -> None:
        """Release what the reward holds: a process, or connections."""


def check_scores(name: str, scores: object, count: int, sign: float) -> list[float]:
    """Check what a reward returned, and turn its sign where a high score means worse.

    Args:
        name: What messages call the reward.
        scores: What it returned.
        count: How many scores are due.
        sign: 1, or -1 where a high score means worse.

    Raises:
        RewardFailed: These are not ``count`` finite numbers.
    """
    if not isinstance(scores, list) or not all(
        isinstance(score, int | float) and not isinstance(score, bool) for score in scores
    ):
        raise RewardFailed(f"{name} gave no list of numbers")
    if len(scores) != count:
        raise RewardFailed(f"{name} gave {len(scores)} scores for {count} responses")
    for number, score in enumerate(scores, 1):
        if not math.isfinite(score):
            raise RewardFailed(f"{name} gave {score} for response {number} of {count}")
    return [sign * float(score) for score in scores]


def sign_of(higher_is: str) -> float:
    """Return the factor that makes a higher score better."""
    return 1.0 if higher_is == "better" else -1.0
