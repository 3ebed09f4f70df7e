"""Stage ``sft``: the reference, a small Llama trained from scratch on the written answers."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from training import data
from training.config import Model, Optimiser
from training.models import new_model, save_model
from training.progress import attach
from training.runtime import trainer_arguments


def train_sft(directory: Path, data_directory: Path, model_config: Model, config: Optimiser, seed: int) -> None:
    """Train and save model and tokenizer into ``directory``."""
    rows = data.read_rows(data_directory / data.SFT)
    tokenizer = AutoTokenizer.from_pretrained(data_directory / data.TOKENIZER, padding_side="left")
    set_seed(seed)
    trainer = SFTTrainer(
        model=new_model(tokenizer, model_config),
        args=SFTConfig(
            **trainer_arguments(directory, seed),
            per_device_train_batch_size=config.batch,
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.01,
            max_length=model_config.positions,
            completion_only_loss=True,
            logging_steps=10,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    attach(trainer, "sft", ("loss",), directory)
    trainer.train()
    save_model(trainer.model, tokenizer, directory)
