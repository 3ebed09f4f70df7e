"""Stage ``sft``: the reference, a small Llama trained from scratch on the written answers."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from training import data
from training.config import Model, Optimiser
from training.progress import attach
from training.runtime import trainer_arguments

HEAD = 32


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


def new_model(tokenizer: PreTrainedTokenizerFast, config: Model) -> LlamaForCausalLM:
    """A Llama with random weights that fits ``tokenizer``."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=3 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden // HEAD,
            num_key_value_heads=config.hidden // HEAD,
            head_dim=HEAD,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def save_model(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Weights, configuration and tokenizer; no optimiser state and no pickles."""
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
