"""Scores responses with the reference as its own judge, by the log-probabilities of the tokens that write scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from infalign.files import context_length
from infalign.rewards import ReferenceJudge, ReferenceJudgeReward, RewardFailed
from infalign.templates import Message
from training.memory import batches, draw_bytes, model_shape

JUDGE_BATCH = 512
"""Texts that the reference reads at a time."""
Ask = Callable[[Sequence[Sequence[int]], Sequence[int]], list[list[float]]]
"""Asks the reference for the log-probabilities of some tokens after each of some texts, all given by token ids."""


def next_logprobs(model: Any, texts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[float]]:
    """Compute the log-probabilities of some tokens as the next one of each text.

    Args:
        model: A causal LM, ready for inference.
        texts: Token ids of each text.
        tokens: The tokens.

    Returns:
        Log-probabilities, in nats, of shape (len(texts), len(tokens)).
    """
    shape = model_shape(model)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    result: list[list[float]] = [[] for _ in texts]
    for rows in batches(by_length, JUDGE_BATCH, lambda row: draw_bytes(shape, len(texts[row]))):
        width = max(len(texts[row]) for row in rows)
        ids = torch.tensor([[0] * (width - len(texts[row])) + list(texts[row]) for row in rows], device=model.device)
        lengths = torch.tensor([len(texts[row]) for row in rows], device=model.device)
        mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
        with torch.inference_mode():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp_(min=0),
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
        logprobs = logits.double().log_softmax(-1)[:, list(tokens)].tolist()
        for row, of_row in zip(rows, logprobs, strict=True):
            result[row] = of_row
    return result


@dataclass(frozen=True)
class ReferenceScorer:
    """The reference as its own judge, ready to score."""

    name: str
    """Name of the reward, for messages."""
    judge: ReferenceJudge
    """What the reference reads, and which tokens it may write."""
    context: int
    """Largest length of what the reference reads and writes together, in tokens."""
    ask: Ask
    """Asks the reference."""

    @classmethod
    def create(cls, name: str, record: ReferenceJudgeReward, reference: Path, ask: Ask) -> Self:
        """Create the scorer of a record.

        Args:
            name: Name of the reward.
            record: The rubric and the scores.
            reference: Directory of the reference.
            ask: Asks the reference.

        Raises:
            InvalidValue: A score is not one token.
        """
        tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
        judge = ReferenceJudge.create(record, tokenizer, f"reward.reference_judges[{name}].scores")
        return cls(name, judge, context_length(reference), ask)

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Score responses. Equal texts are judged once.

        Args:
            prompts: Conversations.
            responses: A response to each of them.

        Returns:
            Raw rewards of shape (len(responses),).

        Raises:
            RewardFailed: A conversation does not fit, or the reference gives no score any probability.
        """
        try:
            texts = [tuple(self.judge.encode(*pair, self.context)) for pair in zip(prompts, responses, strict=True)]
            unique = list(dict.fromkeys(texts))
            rewards = dict(zip(unique, map(self.judge.score, self.ask(unique, self.judge.tokens)), strict=True))
        except RewardFailed as error:
            raise RewardFailed(f"the reward {self.name}: {error}") from error
        return np.array([rewards[text] for text in texts], dtype=np.float64)
