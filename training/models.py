"""Models as the stages share them: made from scratch or from a base, loaded where they run best, saved without pickles.

An adapter is a directory with ``adapter_config.json`` (PEFT); whoever loads one says on which model it sits.
"""

import json
import shutil
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
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
from training.config import Base, Lora, Scratch

HEAD = 32
NAMED_WEIGHTS = 3
"""Weights of one kind that an error names."""
CAUSAL, CLASSIFIER = "a causal LM", "a sequence classifier"


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
        InvalidValue: there is no such model, its checkpoint does not fit, or it reads fewer tokens than asked.
    """
    model = read_causal(config.path, "model.base.path", getattr(torch, config.precision))
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


def read_causal(source: str | Path, key: str = "model", dtype: Any = "auto") -> Any:
    """A causal LM, in the precision it was saved in unless another is given.

    Raises:
        InvalidValue: there is none, or its checkpoint does not fit; under the name ``key``.
    """
    return _read(AutoModelForCausalLM, source, key, CAUSAL, dtype=dtype)


def read_classifier(source: str | Path, key: str = "model") -> Any:
    """A sequence classifier with any number of outputs, in the precision it was saved in.

    Raises:
        InvalidValue: there is none, or its checkpoint does not fit; under the name ``key``.
    """
    return _read(AutoModelForSequenceClassification, source, key, CLASSIFIER, dtype="auto")


def new_classifier(causal: Path) -> Any:
    """A sequence classifier with one output: the causal LM in ``causal`` with a new head in place of its own.

    Raises:
        InvalidValue: there is none, or its checkpoint does not fit.
    """
    auto, head = AutoModelForSequenceClassification, "score.weight"
    return _read(auto, causal, "model", CAUSAL, new=(head,), surplus=("lm_head.",), num_labels=1, dtype="auto")


def load_causal(directory: Path) -> Any:
    """A causal LM for inference, in the precision it was saved in."""
    return placed(read_causal(directory))


def is_adapter(directory: Path) -> bool:
    """Whether there is an adapter in place of a whole model."""
    return (directory / "adapter_config.json").is_file()


def put_adapter(directory: Path, model: Any) -> Any:
    """``model``, for inference, with the adapter in ``directory`` on it; :class:`WithoutAdapter` is what it was.

    Raises:
        InvalidValue: the adapter was made for another model, or some of its weights are missing.
    """
    accepted = "an adapter that was made for its model"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            adapted = PeftModel.from_pretrained(model, directory)
        given = load_peft_weights(str(directory), device="cpu").keys()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of whatever type: the library names the reason in the text
        raise InvalidValue("adapter", str(directory), f"{accepted} ({one_line(error)})") from error
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if faults := _faults(own - given, given - own):
        raise InvalidValue("adapter", str(directory), f"{accepted}; {faults}")
    return adapted.eval()


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
    """A sequence classifier for inference, in the precision it was saved in."""
    return placed(read_classifier(directory))


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


def placed(model: Any) -> Any:
    """``model``, for inference, on the GPU if there is one."""
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _read(
    auto: Any,
    source: str | Path,
    key: str,
    kind: str,
    new: Collection[str] = (),
    surplus: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A model whose checkpoint has all of its weights, in its shapes, and no others.

    The library draws what is missing at random and skips what it does not know, and says so only in its log. Weights
    that are tied, and those that the model's class declares harmless, are no faults.

    Args:
        auto: a class of transformers that chooses the architecture.
        source: directory, or id on the hub.
        key: what the errors call the source.
        kind: what is accepted, for the errors.
        new: weights that the checkpoint need not have.
        surplus: prefixes of weights that the model need not have.
        options: those of ``from_pretrained``.
    """
    try:
        model, report = auto.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of whatever type: the library names the reason in the text
        raise InvalidValue(key, str(source), f"{kind}, by directory or hub id ({one_line(error)})") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidValue(key, str(source), f"{kind}; this is an adapter: merge it into its model, and give that")
    faults = _faults(
        report["missing_keys"] - set(new),
        {name for name in report["unexpected_keys"] if not name.startswith(surplus)},
        {name: (tuple(given), tuple(own)) for name, given, own in report["mismatched_keys"]},
    )
    if faults:
        raise InvalidValue(key, str(source), f"{kind} whose checkpoint has exactly its weights; {faults}")
    return model


def _faults(
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
) -> str:
    """How the weights of a checkpoint differ from a model's, and why that may be; empty if they do not.

    ``shapes`` are those that differ, the checkpoint's and the model's.
    """
    shapes = shapes or {}
    differ = [f"{name} of shape {given} where the model's is {own}" for name, (given, own) in sorted(shapes.items())]
    kinds = {"missing": sorted(missing), "not in the model": sorted(unexpected), "other shapes": differ}
    if not any(kinds.values()):
        return ""
    if any(name.partition(".")[0] in ("score", "classifier") for name in missing):
        cause = "the checkpoint has no classification head: it is a causal LM, or its head has another name"
    elif any(name.startswith("lm_head.") for name in missing):
        cause = "the checkpoint has no language model head: it is a classifier or a bare encoder"
    else:
        cause = "its config.json describes another model, or files are missing"
    listed = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    return f"{'; '.join(listed)} ({cause})"


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_WEIGHTS
    return ", ".join(names[:NAMED_WEIGHTS]) + (f" and {more} more" if more > 0 else "")
