"""A reward model that scores responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from infalign.templates import Message, render_judged
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
        for start in range(0, len(unique), SCORE_BATCH):
            batch = unique[start : start + SCORE_BATCH]
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs = inputs.to(self.model.device)
            logits = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            rewards.update(zip(batch, logits[:, 0].float().tolist(), strict=True))
        return np.array([rewards[text] for text in texts], dtype=np.float32)
