"""The shape of a model: the sizes that decide how much memory and how many operations it takes.

It is read from ``config.json`` without loading the model. The counts are those of a Llama, with gated feed-forward
layers and key-value heads that several query heads share. Other models come out a little too large, and mixtures of
experts too small.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import Base, Lora, Scratch

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight, by type."""
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocabulary": ("vocab_size",),
}
"""Keys under which the configs of transformers hold a size."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int
    """Number of layers."""
    hidden: int
    """Width of the hidden state."""
    intermediate: int
    """Width inside a feed-forward layer."""
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key-value heads together."""
    vocabulary: int
    """Tokens of the vocabulary."""
    tied: bool = True
    """Whether the output layer is the embedding."""
    weight: int = 4
    """Bytes of a weight."""

    @property
    def linear(self) -> int:
        """Number of weights in the linear layers between embedding and head."""
        h, i = self.hidden, self.intermediate
        return self.layers * (2 * h * (self.queries + self.keys) + 3 * h * i)

    @property
    def weights(self) -> int:
        """Number of all weights."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear + embeddings + self.hidden * (2 * self.layers + 1)

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return self.weights * self.weight

    def adapter(self, lora: Lora) -> int:
        """Count the weights of adapters on every linear layer."""
        ends = 4 * self.hidden + 2 * (self.queries + self.keys) + 3 * (self.hidden + self.intermediate)
        return self.layers * lora.rank * ends


def scratch_shape(config: Scratch) -> Shape:
    """Return the shape of the model that :func:`training.models.new_model` makes."""
    h = config.hidden
    return Shape(config.layers, h, 3 * h, h, h, config.vocabulary)


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Read a shape from a config of transformers.

    Args:
        config: The config as a mapping.

    Returns:
        The shape, or None if a size is missing.
    """
    config = config.get("text_config") or config
    sizes = {size: next((config[name] for name in names if config.get(name)), None) for size, names in NAMES.items()}
    if None in sizes.values():
        return None
    layers, hidden, heads, vocabulary = (int(sizes[size] or 0) for size in ("layers", "hidden", "heads", "vocabulary"))
    head = config.get("head_dim") or hidden // heads
    return Shape(
        layers,
        hidden,
        config.get("intermediate_size") or config.get("n_inner") or 4 * hidden,
        heads * head,
        (config.get("num_key_value_heads") or heads) * head,
        vocabulary,
        bool(config.get("tie_word_embeddings", True)),
        BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."), 4),
    )


def read_shape(model: str | Path) -> Shape | None:
    """Read the shape of a model on this machine.

    Args:
        model: Directory of the model, or its id on the hub.

    Returns:
        The shape, or None if the model is not on this machine or a size is missing.
    """
    file = Path(model) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        from training.hub import split_source

        name, revision = split_source(model)
        try:
            cached = try_to_load_from_cache(name, "config.json", revision=revision)
        except HFValidationError:
            return None
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    try:
        return shape_of(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        return None


def reference_shape(origin: Scratch | Base) -> Shape | None:
    """Return the shape of the reference that is made from ``origin``, or None if it is unknown.

    Args:
        origin: What the reference starts from.
    """
    if isinstance(origin, Scratch):
        return scratch_shape(origin)
    shape = read_shape(origin.path)
    return shape and replace(shape, weight=BYTES[origin.precision])
