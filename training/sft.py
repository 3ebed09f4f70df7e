"""Stage ``sft``: makes the reference, the model that the policy is aligned from.

The reference is a new or an existing model that learns to write the answers of the data (supervised fine-tuning), or
an existing model as it is.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from training.config import Base, Compute, Optimiser, Scratch
from training.data import SFT, TOKENIZER, read_lengths, read_rows
from training.memory import Pass, model_shape
from training.models import base_model, new_model, save_model
from training.supervised import fit_rows

WEIGHT_DECAY = 0.01
"""Weight decay per step, times the learning rate."""


def make_reference(
    directory: Path,
    *,
    data: Path,
    origin: Scratch | Base,
    config: Optimiser | None,
    compute: Compute,
    seed: int,
) -> None:
    """Make the reference and save it into ``directory``/model.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        origin: What the reference starts from.
        config: How it learns, or None if the base model is the reference as it is.
        compute: How the trainer uses the machine.
        seed: Seed of the stage: of the first weights and of the order of the rows.

    Raises:
        InvalidValue: The base model cannot be used.
    """
    tokenizer = AutoTokenizer.from_pretrained(data / TOKENIZER, padding_side="left", trust_remote_code=False)
    set_seed(seed)

    def start() -> Any:
        return base_model(tokenizer, origin) if isinstance(origin, Base) else new_model(tokenizer, origin)

    if config is None:
        save_model(start(), tokenizer, directory / "model")
        return
    adapters, longest = config.lora, read_lengths(data)["answer"].longest
    fit_rows(
        (SFTTrainer, SFTConfig),
        start,
        tokenizer,
        read_rows(data / SFT),
        directory=directory,
        target=directory / "model",
        stage="sft",
        config=config,
        estimate_pass=lambda model: Pass(model_shape(model), compute, longest, adapters),
        seed=seed,
        figures=("loss",),
        weight_decay=WEIGHT_DECAY,
        max_length=origin.positions,
        completion_only_loss=True,
    )
