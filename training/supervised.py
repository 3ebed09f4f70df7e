"""Supervised training on rows of data, which the stages ``sft`` and ``reward`` share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from training.config import Optimiser
from training.memory import Pass
from training.models import lora_config, save_trainer_model
from training.optimisers import MuonAdam
from training.progress import attach_progress
from training.runtime import run_trainer, trainer_arguments

Row = dict[str, list[int]]
"""A tokenised row: token ids by column."""
UNCOUNTED = -100
"""Label of a token that does not count for the loss, in transformers and PyTorch."""
WARMUP_STEPS = 20
"""Steps over which the learning rate rises."""


def fit_rows(
    kinds: tuple[type, type],
    load_model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    *,
    directory: Path,
    target: Path,
    stage: str,
    config: Optimiser,
    estimate_pass: Callable[[Any], Pass],
    seed: int,
    figures: tuple[str, ...],
    task: str = "CAUSAL_LM",
    weight_decay: float = 0.0,
    **arguments: Any,
) -> None:
    """Train a model with one of TRL's trainers and save it.

    Args:
        kinds: The trainer and the class of its arguments, such as ``(SFTTrainer, SFTConfig)``.
        load_model: Loads the model that is trained. It is called again for the model that adapters are merged into.
        tokenizer: Tokenizer of the model.
        rows: Tokenised rows, with the columns that the trainer reads. Batches are made of rows of similar length.
        directory: Directory of the stage, for checkpoints and metrics.
        target: Directory that the model is saved in.
        stage: Name of the stage.
        config: Learning rate, batch, epochs, optimiser and adapters.
        estimate_pass: Describes the memory of a pass of the model.
        seed: Seed of the order of the rows and of dropout.
        figures: Names of the metrics that the progress bar shows.
        task: PEFT's name of the model's task.
        weight_decay: Decay per step, times the learning rate.
        arguments: Further arguments of the trainer.

    Raises:
        InvalidValue: The batch cannot be split evenly among processes.
        TooLittleMemory: Not even one row fits into memory.
    """
    model = load_model()
    trainer_kind, arguments_kind = kinds
    need = estimate_pass(model)
    dataset = Dataset.from_list([row | {"length": max(map(len, row.values()))} for row in rows])
    steps = config.epochs * -(-len(dataset) // config.batch)
    trainer = trainer_kind(
        model=model,
        args=arguments_kind(
            **trainer_arguments(directory, stage, seed, config.batch, need),
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(WARMUP_STEPS, steps // 2),
            weight_decay=weight_decay,
            logging_steps=10,
            train_sampling_strategy="group_by_length",  # else a quarter of the tokens are padding
            remove_unused_columns=False,  # else the trainer drops the lengths
            max_length=None,  # the stage ``data`` has dropped what is too long
            **arguments,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(config.lora, task) if config.lora else None,
    )
    if config.optimiser == "muon":
        trainer.optimizer = MuonAdam(trainer.model, config.learning_rate, weight_decay=weight_decay, others=1.0)
    attach_progress(trainer, stage, figures, directory, need.compute.report_to)
    run_trainer(trainer)
    save_trainer_model(trainer, tokenizer, target, merge_onto=load_model)
