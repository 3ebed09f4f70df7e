"""Stage ``reward``: a Bradley–Terry reward model on the comparisons, started from the reference."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from training import data
from training.config import Optimiser
from training.progress import attach
from training.runtime import trainer_arguments
from training.sft import save_model


def train_reward_model(directory: Path, data_directory: Path, start: Path, config: Optimiser, seed: int) -> None:
    """Train and save model and tokenizer into ``directory``; ``start`` is the model directory to start from."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **trainer_arguments(directory, seed),
            per_device_train_batch_size=config.batch,
            num_train_epochs=1,
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
