"""Scores responses with one reward model, with several, and with the one reward that several are combined into."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from infalign.combination import Combination
from infalign.errors import InvalidValue
from infalign.files import reward_models, score_values
from infalign.rewards import (
    OpenReward,
    ReferenceJudgeReward,
    RewardFailed,
    open_reward,
    read_reference_judges,
    read_reward,
)
from infalign.templates import Message, prompt_key, render_conversation, render_prompt, tokenise
from infalign.tokens import cut_answer
from training.memory import batches, forward_bytes, model_shape
from training.models import load_causal, load_classifier
from training.reference_judge import Ask, ReferenceScorer, next_logprobs

SCORE_BATCH = 512
"""Texts scored at a time."""
PAUSES = (1.0, 4.0)
"""Seconds until a reward that was down or slow is asked again."""


@dataclass(frozen=True)
class Scorer:
    """A reward model or a judge.

    A classifier on a causal LM is read at the last token of a text, as vLLM does it. It does not matter which token the
    model or its tokenizer pads with.
    """

    model: Any
    """A sequence classifier, ready for inference."""
    tokenizer: Any
    """Its tokenizer."""
    output: int = 0
    """Which of the model's outputs is the reward."""
    values: tuple[float, ...] = ()
    """What each output of a judge is worth. The reward is then the expected score."""

    @classmethod
    def load(cls, directory: Path) -> "Scorer":
        """Load a reward model from its directory."""
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return cls(load_classifier(directory), tokenizer, values=score_values(directory))

    def encode(self, prompt: Sequence[Message], response: str) -> tuple[int, ...]:
        """Return the token ids that the model reads for a prompt and a response.

        The end of a response that is too long is left out, as the server does.

        Raises:
            InvalidValue: The prompt alone is too long.
        """
        tokens = self.encode_whole(prompt, response)
        if len(tokens) > self.context:
            empty = self.encode_whole(prompt, "")
            if len(empty) > self.context:
                accepted = (
                    f"at most {self.context} tokens, the context of a reward model or judge; with model.base.positions="
                    f"{self.context} longer prompts are left out"
                )
                raise InvalidValue("data", f"a prompt of {len(empty)} tokens", accepted)
            tokens = cut_answer(tokens, empty, self.context)
        return tuple(tokens)

    def encode_whole(self, prompt: Sequence[Message], response: str) -> list[int]:
        """Return the token ids of a prompt and a response, however many they are."""
        return tokenise(self.tokenizer, render_conversation(self.tokenizer, prompt, response))

    @cached_property
    def context(self) -> int:
        """Most tokens that the model can read."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                positions -= module.padding_idx + 1  # RoBERTa counts from behind it
        return int(positions)

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float32]:
        """Score responses. Equal texts are scored once, so that their rewards are equal.

        Args:
            prompts: Conversations.
            responses: A response to each of them.

        Returns:
            Raw rewards of shape (len(responses),).
        """
        texts = [self.encode(*pair) for pair in zip(prompts, responses, strict=True)]
        unique = sorted(set(texts), key=lambda tokens: (len(tokens), tokens))
        rewards: dict[tuple[int, ...], float] = {}
        shape = model_shape(self.model)
        for batch in batches(unique, SCORE_BATCH, lambda tokens: forward_bytes(shape, len(tokens))):
            rewards.update(zip(batch, self._outputs(batch), strict=True))
        return np.array([rewards[tokens] for tokens in texts], dtype=np.float32)

    @torch.inference_mode()
    def _outputs(self, batch: Sequence[tuple[int, ...]]) -> list[float]:
        """Score texts in one padded batch.

        Transformers reads a causal classifier at the last token that is not the config's padding token. So the batch is
        padded with a token that no text ends with, and the config names this token while the batch is scored.
        """
        ends = {tokens[-1] for tokens in batch}
        vocabulary = self.model.get_input_embeddings().num_embeddings
        padding = next(token for token in range(vocabulary) if token not in ends)
        rows = [torch.tensor(tokens, device=self.model.device) for tokens in batch]
        config = self.model.config.get_text_config()
        own_padding, config.pad_token_id = config.pad_token_id, padding
        try:
            logits = self.model(
                input_ids=pad_sequence(rows, batch_first=True, padding_value=padding),
                attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            ).logits
        finally:
            config.pad_token_id = own_padding
        return self.read(logits)

    def read(self, logits: torch.Tensor) -> list[float]:
        """Compute rewards from the model's outputs of shape (texts, outputs)."""
        if self.values:
            values = torch.tensor(self.values, dtype=torch.float64, device=logits.device)
            return list((logits.double().softmax(-1) @ values).tolist())
        return list(logits[:, self.output].float().tolist())


@dataclass(frozen=True)
class ExternalScorer:
    """A reward that no model of this process computes: a function, a service, or a judge behind a server."""

    reward: OpenReward
    """The reward, ready to score."""

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Score responses. Equal ones to one conversation are scored once. A reward that is down is asked again.

        Args:
            prompts: Conversations.
            responses: A response to each of them.

        Returns:
            Raw rewards of shape (len(responses),).

        Raises:
            RewardFailed: The reward failed at a response, or did not answer in several attempts.
        """
        keys = [(json.dumps(list(prompt)), response) for prompt, response in zip(prompts, responses, strict=True)]
        rewards: dict[tuple[str, str], float] = {}
        unique = list(dict.fromkeys(keys))
        for start in range(0, len(unique), self.reward.batch):
            batch = unique[start : start + self.reward.batch]
            scores = self._ask([json.loads(prompt) for prompt, _ in batch], [response for _, response in batch])
            rewards.update(zip(batch, scores, strict=True))
        return np.array([rewards[key] for key in keys], dtype=np.float64)

    def _ask(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """Score a batch. What has no reward yet is scored again, unless that would be of no use."""
        scores: dict[int, float] = {}
        left = list(range(len(responses)))
        for pause in (*PAUSES, None):
            results = self.reward.score_each([prompts[place] for place in left], [responses[place] for place in left])
            by_place = dict(zip(left, results, strict=True))
            failures = {place: result for place, result in by_place.items() if isinstance(result, RewardFailed)}
            scores |= {place: result for place, result in by_place.items() if not isinstance(result, RewardFailed)}
            if not failures:
                break
            fatal = [failure for failure in failures.values() if failure.is_of_content or pause is None]
            if fatal or pause is None:
                raise fatal[0]
            left = list(failures)
            time.sleep(pause)
        return [scores[place] for place in range(len(responses))]


AnyScorer = Scorer | ReferenceScorer | ExternalScorer


def load_scorer(
    directory: Path, name: str = "reward", reference: Path | None = None, ask: Ask | None = None
) -> AnyScorer:
    """Load a reward from its directory.

    Args:
        directory: Directory of a reward model, or of a reward that is not one.
        name: Name of the reward, for messages.
        reference: Directory of the reference. It may be left out if the reference is not a judge.
        ask: Asks the reference as a judge. If it is left out, the reference is loaded for that.

    Raises:
        InvalidValue: A function cannot be imported, a variable with an API key is not set, or a score is not one token.
    """
    reward = read_reward(directory)
    if reward is None:
        return Scorer.load(directory)
    if isinstance(reward, ReferenceJudgeReward):
        assert reference is not None  # noqa: S101 - whoever has such a reward has a reference
        return ReferenceScorer.create(name, reward, reference, ask or partial(next_logprobs, load_causal(reference)))
    return ExternalScorer(open_reward(name, reward))


@dataclass(frozen=True)
class Scorers:
    """All rewards of a run or a bundle, in the order of their calibration tables."""

    models: dict[str, AnyScorer]
    """Rewards by name."""
    reference_memory: int = 0
    """Memory of the reference in bytes, if it was loaded to judge."""

    @classmethod
    def load(cls, directory: Path, reference: Path, ask: Ask | None = None) -> "Scorers":
        """Load all rewards.

        Args:
            directory: Directory of a reward, or of several.
            reference: Directory of the reference.
            ask: Asks the reference as a judge. If it is left out, the reference is loaded where it judges.
        """
        directories, memory = reward_models(directory), 0
        if ask is None and read_reference_judges(directories):
            model = load_causal(reference)
            ask, memory = partial(next_logprobs, model), model.get_memory_footprint()
        models = {name: load_scorer(path, name, reference, ask) for name, path in directories.items()}
        return cls(models, memory)

    @property
    def memory(self) -> int:
        """Memory that the reward models take, in bytes."""
        models = [scorer.model for scorer in self.models.values() if isinstance(scorer, Scorer)]
        footprints: list[int] = [model.get_memory_footprint() for model in models]
        return self.reference_memory + sum(footprints)

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Score responses with every reward.

        Args:
            prompts: Conversations.
            responses: A response to each of them.

        Returns:
            Raw rewards of shape (len(responses), M), where M is the number of models.
        """
        return np.stack([scorer.score(prompts, responses) for scorer in self.models.values()], axis=1)


@dataclass(frozen=True)
class CombinedScorer:
    """The reward that every stage after calibration uses. It combines the reward models into one number."""

    scorers: Scorers
    """The reward models."""
    combination: Combination
    """How their quantiles are combined."""
    tokenizer: Any
    """Tokenizer of the reference. Its rendering of a prompt is the key of the calibration tables."""

    @classmethod
    def load(cls, directory: Path, combination: Combination, reference: Path) -> "CombinedScorer":
        """Load reward models and combine them.

        Args:
            directory: Directory of the reward model, or of several.
            combination: How their quantiles are combined.
            reference: Directory of the reference model.
        """
        return cls(
            Scorers.load(directory, reference),
            combination,
            AutoTokenizer.from_pretrained(reference, trust_remote_code=False),
        )

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Score responses.

        Args:
            prompts: Conversations, which are in the calibration if there are several reward models.
            responses: A response to each of them.

        Returns:
            Rewards of shape (len(responses),): the combined ones, or the raw ones of a single model.
        """
        rewards = self.scorers.score(prompts, responses)
        if self.combination.models == 1:
            return rewards[:, 0]
        keys = [prompt_key(render_prompt(self.tokenizer, messages)) for messages in prompts]
        return self.combination.combine(keys, rewards)
