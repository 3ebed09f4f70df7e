"""Reward models that score responses, and the one reward that they are combined to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from infalign.bundle import reward_models
from infalign.combination import Combination
from infalign.templates import Message, prompt_key, render_judged, render_prompt
from training.memory import batches, forward_bytes, model_shape
from training.models import load_classifier

SCORE_BATCH = 512


@dataclass(frozen=True)
class Scorer:
    """A reward model."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, directory: Path) -> "Scorer":
        """From a model directory."""
        return cls(load_classifier(directory), AutoTokenizer.from_pretrained(directory, padding_side="right"))

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float32]:
        """Raw rewards, shape (len(responses),); equal texts are scored once, so that they tie exactly."""
        texts = [render_judged(self.tokenizer, *pair) for pair in zip(prompts, responses, strict=True)]
        unique = sorted(dict.fromkeys(texts), key=len)  # not a set: its order, and with it the padding, is random
        rewards: dict[str, float] = {}
        shape = model_shape(self.model)

        def size(text: str) -> int:
            return forward_bytes(shape, len(self.tokenizer(text, add_special_tokens=False).input_ids))

        for batch in batches(unique, SCORE_BATCH, size):
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs = inputs.to(self.model.device)
            logits = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            rewards.update(zip(batch, logits[:, 0].float().tolist(), strict=True))
        return np.array([rewards[text] for text in texts], dtype=np.float32)


@dataclass(frozen=True)
class Scorers:
    """All reward models of a run or a bundle, by name, in the order of their calibrations."""

    models: dict[str, Scorer]

    @classmethod
    def load(cls, directory: Path) -> "Scorers":
        """From a directory that is a model or holds several."""
        return cls({name: Scorer.load(model) for name, model in reward_models(directory).items()})

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float32]:
        """Raw rewards, shape (len(responses), M)."""
        return np.stack([scorer.score(prompts, responses) for scorer in self.models.values()], axis=1)


@dataclass(frozen=True)
class CombinedScorer:
    """What everything after calibration sees as the reward."""

    scorers: Scorers
    combination: Combination
    tokenizer: Any
    """The reference's, by whose rendering the calibrations know a prompt."""

    @classmethod
    def load(cls, directory: Path, combination: Combination, reference: Path) -> "CombinedScorer":
        """The reward models in ``directory``, on the quantiles of ``combination``."""
        return cls(Scorers.load(directory), combination, AutoTokenizer.from_pretrained(reference))

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Rewards, shape (len(responses),): combined, or of one model its raw ones."""
        rewards = self.scorers.score(prompts, responses)
        if self.combination.models == 1:
            return rewards[:, 0]
        keys = [prompt_key(render_prompt(self.tokenizer, messages)) for messages in prompts]
        return self.combination.combine(keys, rewards)
