"""Stage ``sft``: makes the reference, the model that the policy is aligned from.

The reference is a new or an existing model that learns to write the answers of the data (supervised fine-tuning), or
an existing model as it is.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from infalign.templates import render_conversation, render_prompt, tokenise
from training.config import Base, Compute, Optimiser, Scratch
from training.data import SFT, TOKENIZER, read_lengths, read_rows
from training.memory import Pass, model_shape
from training.models import base_model, new_model, save_model
from training.supervised import UNCOUNTED, Row, fit_rows

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
        (tokenise_answer(tokenizer, row) for row in read_rows(data / SFT)),
        directory=directory,
        target=directory / "model",
        stage="sft",
        config=config,
        estimate_pass=lambda model: Pass(model_shape(model), compute, longest, adapters),
        seed=seed,
        figures=("loss",),
        weight_decay=WEIGHT_DECAY,
    )


def tokenise_answer(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> Row:
    """Tokenise a prompt and its answer as TRL does, which takes four times as long.

    Args:
        tokenizer: Tokenizer of the reference.
        row: A row of :data:`training.data.SFT`.

    Returns:
        ``input_ids`` of both, and ``labels``, in which the tokens of the prompt do not count for the loss.
    """
    prompt = tokenise(tokenizer, render_prompt(tokenizer, row["prompt"]))
    (answer,) = row["completion"]
    tokens = tokenise(tokenizer, render_conversation(tokenizer, row["prompt"], answer["content"]))
    start = min(len(prompt), len(tokens))  # a template may write more before an answer than it keeps in a conversation
    return {"input_ids": tokens, "labels": [UNCOUNTED] * start + tokens[start:]}
