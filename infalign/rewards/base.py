"""The base class of rewards that no model of a bundle computes, and their error."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

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


class OpenReward(ABC):
    """A reward that is ready to score. It may be called from several threads, one call at a time."""

    batch: int
    """The most responses of one call."""
    tokens: int = 0
    """Tokens that a judge has read and written so far; 0 for every other reward."""
    cached_tokens: int = 0
    """Tokens of these that the judge's server did not read again, as far as it says so."""
    patience: float = math.inf
    """Seconds in which responses are scored alone, after a batch has failed. Those that are left then fail too."""

    @abstractmethod
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

    @abstractmethod
    def close(self) -> None:
        """Release what the reward holds: a process, or connections."""

    def score_each(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]
    ) -> "list[float | RewardFailed]":
        """Score a batch of responses, so that one which cannot be scored takes no other with it.

        If the batch fails and one of its responses may be at fault, each is scored alone, while :attr:`patience` lasts.

        Args:
            prompts: Conversations.
            responses: A response to each of them.

        Returns:
            For each response a finite number, or why there is none.
        """
        try:
            return list(self.score(prompts, responses))
        except RewardFailed as error:
            failure = error
        if len(responses) == 1 or not failure.is_of_content:
            return [failure] * len(responses)
        end = time.monotonic() + self.patience
        results: list[float | RewardFailed] = []
        for prompt, response in zip(prompts, responses, strict=True):
            if time.monotonic() >= end:
                failure = RewardFailed(f"{failure}; no time was left to score others alone", is_of_content=False)
                break
            try:
                results.append(self.score_alone(prompt, response))
            except RewardFailed as error:
                results.append(error)
                failure = error
                if not error.is_of_content:  # it is down, so it would fail at the others too
                    break
        return results + [failure] * (len(responses) - len(results))

    def score_alone(self, prompt: Sequence[Message], response: str) -> float:
        """Score one response of a batch that failed.

        Raises:
            RewardFailed: It cannot be scored.
        """
        (score,) = self.score([prompt], [response])
        return score


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
