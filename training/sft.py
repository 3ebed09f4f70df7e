"""Stage ``sft``: the reference, from a model made from scratch or a base model, taught the written answers."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from training import data
from training.config import Base, Compute, Optimiser, Scratch
from training.memory import Pass, model_shape
from training.models import base_model, lora, new_model, save_model, save_trained
from training.optimisers import MuonAdam
from training.progress import attach
from training.runtime import train, trainer_arguments


def make_reference(
    directory: Path, data_directory: Path, origin: Scratch | Base, config: Optimiser | None, seed: int, compute: Compute
) -> None:
    """Train the reference and save it into ``directory``/model; without ``config`` the base model is the reference.

    Raises:
        InvalidValue: the base model cannot be used.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        data_directory / data.TOKENIZER, padding_side="left", trust_remote_code=False
    )
    set_seed(seed)

    def start() -> Any:
        return base_model(tokenizer, origin) if isinstance(origin, Base) else new_model(tokenizer, origin)

    if config is None:
        save_model(start(), tokenizer, directory / "model")
        return
    model = start()
    need = Pass(model_shape(model), compute, data.read_lengths(data_directory)["answer"].longest, config.lora)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **trainer_arguments(directory, "sft", seed, config.batch, need),
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.01,
            max_length=origin.positions,
            completion_only_loss=True,
            logging_steps=10,
        ),
        train_dataset=Dataset.from_list(data.read_rows(data_directory / data.SFT)),
        processing_class=tokenizer,
        peft_config=lora(config.lora) if config.lora else None,
    )
    if config.optimiser == "muon":
        trainer.optimizer = MuonAdam(trainer.model, config.learning_rate, weight_decay=0.01, others=1.0)
    attach(trainer, "sft", ("loss",), directory, compute.report_to)
    train(trainer)
    save_trained(trainer, tokenizer, directory / "model", merge_onto=start)
