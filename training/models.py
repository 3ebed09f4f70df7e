"""Models as the stages share them: made from scratch, loaded where they run best, saved without pickles."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from training.config import Model

HEAD = 32


def new_model(tokenizer: PreTrainedTokenizerBase, config: Model) -> Any:
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


def load_causal(directory: Path) -> Any:
    """A causal LM for inference, in the precision it was saved in."""
    return _placed(AutoModelForCausalLM.from_pretrained(directory, dtype="auto"))


def load_classifier(directory: Path) -> Any:
    """A sequence classifier with one output, for inference, in the precision it was saved in."""
    return _placed(AutoModelForSequenceClassification.from_pretrained(directory, dtype="auto"))


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Weights, configuration and tokenizer below ``directory``/model; no optimiser state and no pickles."""
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")


def _placed(model: Any) -> Any:
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
