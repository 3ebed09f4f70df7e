"""Makes, loads and saves models.

Models are made from scratch or from a base model, loaded onto the GPU if there is one, and saved without pickles. An
adapter (LoRA, by the library PEFT) is a directory with ``adapter_config.json``. It does not name the model that it
belongs to; whoever loads it does.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
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
from training.checkpoints import describe_faults, read_model
from training.config import Base, Lora, Scratch

HEAD = 32
"""Width of an attention head of models from scratch."""
CAUSAL, CLASSIFIER = "a causal LM", "a sequence classifier"
"""What error messages call the two kinds of models."""


def new_model(tokenizer: PreTrainedTokenizerBase, config: Scratch) -> Any:
    """Make a Llama with random weights.

    Args:
        tokenizer: Tokenizer of the model.
        config: Sizes of the model.
    """
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
    """Load a base model and adjust its settings.

    It ends and pads sequences as the tokenizer does. Its own generation settings are dropped.

    Args:
        tokenizer: Tokenizer of the model.
        config: Which model it is.

    Raises:
        InvalidValue: There is no such model, its checkpoint does not fit, or its context is shorter than the config
            asks.
    """
    model = read_causal(config.path, "model.base.path", getattr(torch, config.precision))
    text_config = model.config.get_text_config()
    longest = getattr(text_config, "max_position_embeddings", None)
    if longest is None:
        raise InvalidValue("model.base.path", config.path, "a model whose configuration says how many tokens it reads")
    if longest < config.positions:
        raise InvalidValue("model.base.positions", config.positions, f"at most the model's own {longest}")
    if longest > config.positions and (reason := _why_whole(model, longest)):
        raise InvalidValue("model.base.positions", config.positions, f"{longest}, the model's own: {reason}")
    text_config.max_position_embeddings = config.positions
    for part in (model.config, text_config):  # the second is another one in a model that also takes images
        part.pad_token_id, part.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return model


def _why_whole(model: Any, positions: int) -> str:
    """Say why the context of a model cannot be made smaller by its configuration. Empty if it can.

    Args:
        model: The model.
        positions: Its context, in tokens.
    """
    for name, module in model.named_modules():  # as in GPT-2 and OPT
        is_table = isinstance(module, torch.nn.Embedding) and module.num_embeddings >= positions
        if is_table and ("position" in name or name.endswith("wpe")):
            return "it has learned a vector for each position"
    rope = getattr(model.config.get_text_config(), "rope_parameters", None)
    return "its rope (longrope) depends on it" if "longrope" in str(rope) else ""


def lora_config(config: Lora, task: str = "CAUSAL_LM") -> LoraConfig:
    """Convert the config of adapters to PEFT's.

    Args:
        config: Rank and scale of the adapters.
        task: PEFT's name of the model's task. The new head of a ``SEQ_CLS`` model is trained as a whole.
    """
    saved_modules = ["score"] if task == "SEQ_CLS" else None  # the head is new, and trained whole
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="all-linear",
        task_type=task,
        modules_to_save=saved_modules,
    )


def read_causal(source: str | Path, key: str = "model", dtype: Any = "auto") -> Any:
    """Load a causal LM.

    Args:
        source: Directory of the model, or its id on the hub.
        key: Name of the setting that error messages blame.
        dtype: Type of the weights. By default it is the one that they are saved in.

    Raises:
        InvalidValue: There is no such model, or its checkpoint does not fit.
    """
    return read_model(AutoModelForCausalLM, source, key, CAUSAL, dtype=dtype)


def read_classifier(source: str | Path, key: str = "model") -> Any:
    """Load a sequence classifier with any number of outputs, in the precision that it is saved in.

    Args:
        source: Directory of the model, or its id on the hub.
        key: Name of the setting that error messages blame.

    Raises:
        InvalidValue: There is no such model, or its checkpoint does not fit.
    """
    return read_model(AutoModelForSequenceClassification, source, key, CLASSIFIER, dtype="auto")


def new_classifier(causal: str | Path, outputs: int = 1, key: str = "model") -> Any:
    """Load a causal LM, or a classifier on one, as a sequence classifier whose head is new and random.

    Args:
        causal: Directory of the model, or its id on the hub.
        outputs: Number of outputs.
        key: Name of the setting that error messages blame.

    Raises:
        InvalidValue: There is no such model, or its checkpoint does not fit.
    """
    auto, head = AutoModelForSequenceClassification, "score.weight"
    return read_model(auto, causal, key, CAUSAL, new=(head,), surplus=("lm_head.",), num_labels=outputs, dtype="auto")


def load_causal(directory: Path) -> Any:
    """Load a causal LM for inference, in the precision that it is saved in."""
    return place(read_causal(directory))


def is_adapter(directory: Path) -> bool:
    """Say whether a directory holds an adapter rather than a whole model."""
    return (directory / "adapter_config.json").is_file()


def put_adapter(directory: Path, model: Any) -> Any:
    """Put an adapter on a model, for inference.

    Args:
        directory: Directory of the adapter.
        model: The model, which is changed. :class:`WithoutAdapter` gives it back as it was.

    Returns:
        The model with the adapter.

    Raises:
        InvalidValue: The adapter was made for another model, or some of its weights are missing.
    """
    accepted = "an adapter that was made for its model"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            peft_model = PeftModel.from_pretrained(model, directory)
        file_keys = load_peft_weights(str(directory), device="cpu").keys()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of whatever type: the library names the reason in the text
        raise InvalidValue("adapter", str(directory), f"{accepted} ({one_line(error)})") from error
    model_keys = get_peft_model_state_dict(peft_model, save_embedding_layers=False).keys()
    if faults := describe_faults(model_keys - file_keys, file_keys - model_keys):
        raise InvalidValue("adapter", str(directory), f"{accepted}; {faults}")
    return peft_model.eval()


def without_dropout(model: Any) -> Any:
    """Switch a model's dropout off, in training mode too.

    Gradient checkpointing needs training mode. With dropout, another policy would be trained than the one that draws.

    Args:
        model: The model, which is changed.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # of models that call the function, such as OPT
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


class WithoutAdapter:
    """The model below an adapter. Policy and reference can so share one copy of the weights.

    Args:
        model: A model with an adapter.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.config, self.device, self.dtype = model.config, model.device, model.dtype

    def __call__(self, **inputs: Any) -> Any:
        """Run the model with the adapter switched off."""
        with self.model.disable_adapter():
            return self.model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """Generate with the adapter switched off."""
        with self.model.disable_adapter():
            return self.model.generate(**inputs)  # type: ignore[no-untyped-call]


@contextmanager
def merged_adapter(model: Any) -> Iterator[None]:
    """Add the adapter of a model to the weights below it, for a while.

    An adapter nearly doubles the number of operations of a small model. Afterwards the weights are exactly as before,
    for which a copy of them is kept.

    Args:
        model: A model, with an adapter or without.
    """
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    layers = [
        layer for layer in modules if isinstance(layer, LoraLayer) and not layer.merged and not layer.disable_adapters
    ]
    originals = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(original)


def load_classifier(directory: Path) -> Any:
    """Load a sequence classifier for inference, in the precision that it is saved in."""
    return place(read_classifier(directory))


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a model with its configuration and tokenizer. Of a model with an adapter, save the adapter alone.

    Args:
        model: The model.
        tokenizer: Tokenizer of the model.
        directory: Directory that is written to.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(str(directory), save_embedding_layers=False)
    else:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    _tidy(directory)


def save_trainer_model(
    trainer: Any, tokenizer: PreTrainedTokenizerBase, directory: Path, merge_onto: Any = None
) -> None:
    """Save the model of a trainer.

    Args:
        trainer: One of TRL's trainers.
        tokenizer: Tokenizer of the model.
        directory: Directory that is written to.
        merge_onto: Loads the model that an adapter is merged into. If it is left out, the adapter is saved as it is.
    """
    adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    target = directory.with_name(f"{directory.name}-adapter") if adapter and merge_onto else directory
    trainer.save_model(str(target))
    if not processes.is_first():
        return
    if target != directory:
        save_model(put_adapter(target, merge_onto()).merge_and_unload(), tokenizer, directory)
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


def place(model: Any) -> Any:
    """Move a model to the GPU, if there is one, and prepare it for inference."""
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
