"""Models of a few thousand random weights."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from infalign.manifest import SamplingLaw
from training.config import Scratch
from training.models import new_model
from training.shards import RolloutJob
from training.tokenizer import train_tokenizer


def tiny_job(directory: Path, samples: int, max_tokens: int) -> RolloutJob:
    """Rollouts to be drawn by transformers from such a reference and scored by such a reward model."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["why and how, a b c d e"], 300)
    reference = new_model(tokenizer, Scratch(vocabulary=300, hidden=32, layers=1, positions=64))
    reward = LlamaForSequenceClassification(LlamaConfig.from_dict(reference.config.to_dict() | {"num_labels": 1}))
    for name, model in (("reference", reference), ("reward", reward)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    law = SamplingLaw(max_tokens=max_tokens)
    return RolloutJob(directory / "reference", directory / "reward", law, "transformers", samples, seed=0)
