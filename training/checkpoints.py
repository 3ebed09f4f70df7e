"""Loads checkpoints that have exactly the weights of their model.

Transformers draws missing weights at random and skips weights that it does not know, and says so only in its log. Here
both are errors.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from infalign.errors import InvalidValue, one_line
from training.hub import check_model, split_source

NAMED_WEIGHTS = 3
"""Weights of one kind that an error message names."""


def read_model(
    auto: Any,
    source: str | Path,
    key: str,
    kind: str,
    new: Collection[str] = (),
    surplus: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """Load a model whose checkpoint has all of its weights, in the right shapes, and no others.

    Tied weights, and weights that the model's class declares harmless, are accepted.

    Args:
        auto: A class of transformers that chooses the architecture.
        source: Directory of the model, or its id on the hub, with a revision or without.
        key: Name of the setting that error messages blame.
        kind: What is accepted, for the error messages.
        new: Weights that the checkpoint need not have, or may have in another shape. They are drawn at random.
        surplus: Prefixes of weights that the model need not have.
        options: Options of ``from_pretrained``.

    Raises:
        InvalidValue: There is no such model, it is an adapter, or the checkpoint does not fit.
    """
    check_model(source, key, kind)
    name, revision = split_source(source)
    options |= {"revision": revision} if revision else {}
    try:
        model, report = auto.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of whatever type: the library names the reason in the text
        raise InvalidValue(key, str(source), f"{kind}, by directory or hub id ({one_line(error)})") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidValue(key, str(source), f"{kind}; this is an adapter: merge it into its model, and give that")
    faults = describe_faults(
        report["missing_keys"] - set(new),
        {name for name in report["unexpected_keys"] if not name.startswith(surplus)},
        {
            name: (tuple(file_shape), tuple(model_shape))
            for name, file_shape, model_shape in report["mismatched_keys"]
            if name not in new
        },
    )
    if faults:
        raise InvalidValue(key, str(source), f"{kind} whose checkpoint has exactly its weights; {faults}")
    return model


def describe_faults(
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
) -> str:
    """Describe how the weights of a checkpoint differ from those of a model, and the likely cause.

    Args:
        missing: Weights that the checkpoint lacks.
        unexpected: Weights that the model lacks.
        shapes: Shapes in the checkpoint and in the model, of weights whose shapes differ.

    Returns:
        The description. It is empty if they do not differ.
    """
    shapes = shapes or {}
    mismatches = [
        f"{name} of shape {file_shape} where the model's is {model_shape}"
        for name, (file_shape, model_shape) in sorted(shapes.items())
    ]
    kinds = {"missing": sorted(missing), "not in the model": sorted(unexpected), "other shapes": mismatches}
    if not any(kinds.values()):
        return ""
    if any(name.partition(".")[0] in ("score", "classifier") for name in missing):
        cause = "the checkpoint has no classification head: it is a causal LM, or its head has another name"
    elif any(name.startswith("lm_head.") for name in missing):
        cause = "the checkpoint has no language model head: it is a classifier or a bare encoder"
    else:
        cause = "its config.json describes another model, or files are missing"
    groups = [f"{kind}: {_list_some(names)}" for kind, names in kinds.items() if names]
    return f"{'; '.join(groups)} ({cause})"


def _list_some(names: list[str]) -> str:
    more = len(names) - NAMED_WEIGHTS
    return ", ".join(names[:NAMED_WEIGHTS]) + (f" and {more} more" if more > 0 else "")
