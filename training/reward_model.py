"""Stage ``reward``: a Bradley–Terry reward model on the comparisons, started from the reference."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from infalign.estimators import Estimate, over_prompts
from training import data
from training.config import Optimiser
from training.models import save_model
from training.progress import attach
from training.runtime import trainer_arguments
from training.scorer import Scorer

SIDES = ("chosen", "rejected")


def train_reward_model(directory: Path, data_directory: Path, start: Path, config: Optimiser, seed: int) -> None:
    """Train and save model and tokenizer into ``directory``; ``start`` is the model directory to start from.

    ``accuracy.json`` says how often the better of two responses to a held-out prompt has the higher reward.
    """
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **trainer_arguments(directory, seed),
            per_device_train_batch_size=config.batch,
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            max_length=None,
            logging_steps=10,
        ),
        train_dataset=Dataset.from_list(data.read_rows(data_directory / data.PREFERENCES)),
        processing_class=tokenizer,
    )
    attach(trainer, "reward", ("loss", "accuracy"), directory)
    trainer.train()
    save_model(trainer.model, tokenizer, directory)
    accuracy = held_out_accuracy(Scorer.load(directory / "model"), data.read_rows(data_directory / data.HELD_OUT))
    (directory / "accuracy.json").write_text(json.dumps(asdict(accuracy), indent=1) + "\n", encoding="utf-8")


def held_out_accuracy(scorer: Scorer, rows: Sequence[dict[str, Any]]) -> Estimate:
    """Share of comparisons that the rewards decide rightly, ties half, averaged over prompts."""
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (scorer.score(prompts, [row[side][0]["content"] for row in rows]) for side in SIDES)
    by_prompt: dict[str, list[float]] = {}
    for prompt, difference in zip(prompts, chosen - rejected, strict=True):
        by_prompt.setdefault(json.dumps(prompt), []).append((np.sign(difference) + 1) / 2)
    return over_prompts([np.mean(right) for right in by_prompt.values()])
