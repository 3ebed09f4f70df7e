"""The reference as its own judge: what it reads, which tokens it may write, and what they are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from infalign.rewards.base import RewardFailed, sign_of
from infalign.rewards.records import ReferenceJudgeReward
from infalign.rewards.rubric import expected_score, rubric_template, score_tokens
from infalign.templates import Message, render_conversation, tokenise
from infalign.tokens import cut_answer


@dataclass(frozen=True)
class ReferenceJudge:
    """A judge whose weights are the reference's. Whoever runs the reference asks it for one token.

    Training and serving ask in different ways, but read the same tokens.
    """

    tokenizer: Any
    """The reference's tokenizer, with the rubric as its chat template."""
    tokens: tuple[int, ...]
    """The token that writes each score."""
    values: tuple[float, ...]
    """What each score is worth. A high value is good."""

    @classmethod
    def create(cls, record: ReferenceJudgeReward, tokenizer: Any, key: str) -> Self:
        """Create a judge from its record.

        Args:
            record: The rubric and the scores.
            tokenizer: A tokenizer of the reference. Its chat template is replaced.
            key: Name of the setting that error messages blame.

        Raises:
            InvalidValue: A score is not one token.
        """
        tokenizer.chat_template = rubric_template(record.rubric, str(tokenizer.chat_template))
        sign = sign_of(record.higher_is)
        values = tuple(sign * value for value in record.scores.values())
        return cls(tokenizer, score_tokens(tokenizer, record.scores, key), values)

    def encode(self, prompt: Sequence[Message], response: str, context: int) -> list[int]:
        """Return the token ids that the judge reads. If they do not fit, the response's end is left out.

        Args:
            prompt: The conversation.
            response: The response.
            context: Largest length of what is read and written together, in tokens.

        Raises:
            RewardFailed: The rubric and the conversation do not fit without any response.
        """
        tokens = tokenise(self.tokenizer, render_conversation(self.tokenizer, prompt, response))
        if len(tokens) < context:
            return tokens
        empty = tokenise(self.tokenizer, render_conversation(self.tokenizer, prompt, ""))
        if len(empty) >= context:
            raise RewardFailed(
                f"with its rubric a conversation takes {len(empty)} tokens, and the reference as a judge reads at most "
                f"{context - 1}"
            )
        return cut_answer(tokens, empty, context - 1)

    def score(self, logprobs: Sequence[float]) -> float:
        """Compute the reward: the expected score.

        Args:
            logprobs: Log-probability of each score's token, in nats.

        Returns:
            The mean of the values, weighted by the probabilities of the tokens.

        Raises:
            RewardFailed: None of the tokens has any probability, or a log-probability is not a number.

        Examples:
            >>> round(ReferenceJudge(None, (7, 8), (1.0, 5.0)).score([-0.5, -0.5]), 6)
            3.0
        """
        if max(logprobs) == -math.inf:
            raise RewardFailed("the reference as a judge gives none of its scores any probability")
        reward = expected_score(logprobs, self.values)
        if not math.isfinite(reward):
            raise RewardFailed("the reference as a judge gives a score a probability that is not a number")
        return reward
