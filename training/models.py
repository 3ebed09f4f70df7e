"""Models as the stages share them: made from scratch or from a base, loaded where they run best, saved without pickles.

An adapter is a directory with ``adapter_config.json`` (PEFT); whoever loads one says on which model it sits.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from infalign.errors import InvalidValue, one_line
from training import processes
from training.config import Base, Lora, Scratch

HEAD = 32


def new_model(tokenizer: PreTrainedTokenizerBase, config: Scratch) -> Any:
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


def base_model(tokenizer: PreTrainedTokenizerBase, config: Base) -> Any:
    """A base model that ends and pads as ``tokenizer`` does, and draws by no settings of its own.

    Raises:
        InvalidValue: there is no such model, or it is too short for the config's positions.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.path, dtype=getattr(torch, config.precision), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InvalidValue(
            "model.base.path", config.path, f"a causal LM, by directory or hub id ({one_line(error)})"
        ) from error
    longest = model.config.max_position_embeddings
    if longest < config.positions:
        raise InvalidValue("model.base.positions", config.positions, f"at most the model's own {longest}")
    model.config.max_position_embeddings = config.positions
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return model


def lora(config: Lora, task: str = "CAUSAL_LM") -> LoraConfig:
    """PEFT's form of the config, for TRL's trainers."""
    kept = ["score"] if task == "SEQ_CLS" else None  # the head is new, and trained whole
    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type=task, modules_to_save=kept
    )


def load_causal(directory: Path) -> Any:
    """A causal LM for inference, in the precision it was saved in."""
    return _placed(AutoModelForCausalLM.from_pretrained(directory, dtype="auto", trust_remote_code=False))


def is_adapter(directory: Path) -> bool:
    """Whether there is an adapter in place of a whole model."""
    return (directory / "adapter_config.json").is_file()


def put_adapter(directory: Path, model: Any) -> Any:
    """``model``, for inference, with the adapter in ``directory`` on it; :class:`WithoutAdapter` is what it was."""
    return PeftModel.from_pretrained(model, directory).eval()


class WithoutAdapter:
    """The reference inside a model with an adapter: one copy of the weights for both."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.config, self.device = model.config, model.device

    def __call__(self, **inputs: Any) -> Any:
        """Forward, adapter off."""
        with self.model.disable_adapter():
            return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """Generate, adapter off."""
        with self.model.disable_adapter():
            return self.model.generate(**inputs)  # type: ignore[no-untyped-call]


def load_classifier(directory: Path) -> Any:
    """A sequence classifier with one output, for inference, in the precision it was saved in."""
    return _placed(AutoModelForSequenceClassification.from_pretrained(directory, dtype="auto", trust_remote_code=False))


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Weights, configuration and tokenizer, or of a model with an adapter the adapter alone; no pickles."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(directory), save_embedding_layers=False)
    else:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    _tidy(directory)


def save_trained(trainer: Any, tokenizer: PreTrainedTokenizerBase, directory: Path, merge_onto: Any = None) -> None:
    """What ``trainer`` has trained, gathered from all its processes, as :func:`save_model` does.

    ``merge_onto`` loads the model whose weights an adapter is to be added to; without it an adapter stays one.
    """
    adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    target = directory.with_name(f"{directory.name}-adapter") if adapter and merge_onto else directory
    trainer.save_model(str(target))
    if not processes.is_first():
        return
    if target != directory:
        save_model(PeftModel.from_pretrained(merge_onto(), target).merge_and_unload(), tokenizer, directory)
        shutil.rmtree(target)
        return
    if not adapter:
        tokenizer.save_pretrained(directory)
    _tidy(directory)


def _tidy(directory: Path) -> None:
    """Leave no pickle, no card that says nothing, no path of this machine, and no order that is chance."""
    for name in ("training_args.bin", "README.md"):
        (directory / name).unlink(missing_ok=True)
    config = directory / "adapter_config.json"
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        values |= {"base_model_name_or_path": "reference", "target_modules": sorted(values["target_modules"])}
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _placed(model: Any) -> Any:
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
