"""The shape of a model: the sizes that decide how much memory and how many operations it takes.

Read from ``config.json`` without loading a model. Counts are those of a Llama: gated feed-forward layers, and key-value
heads that several query heads share. Models that differ come out a little too large, mixtures of experts too small.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import Base, Lora, Scratch

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocabulary": ("vocab_size",),
}
"""Keys by which configurations of transformers know a size."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int
    hidden: int
    intermediate: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key-value heads together."""
    vocabulary: int
    tied: bool = True
    """Whether the output layer is the embedding."""
    weight: int = 4
    """Bytes of a weight."""

    @property
    def linear(self) -> int:
        """Weights of the linear layers between embedding and head."""
        h, i = self.hidden, self.intermediate
        return self.layers * (2 * h * (self.queries + self.keys) + 3 * h * i)

    @property
    def weights(self) -> int:
        """All weights."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear + embeddings + self.hidden * (2 * self.layers + 1)

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return self.weights * self.weight

    def adapter(self, lora: Lora) -> int:
        """Weights of adapters on every linear layer."""
        ends = 4 * self.hidden + 2 * (self.queries + self.keys) + 3 * (self.hidden + self.intermediate)
        return self.layers * lora.rank * ends


def scratch_shape(config: Scratch) -> Shape:
    """That of :func:`training.models.new_model`."""
    h = config.hidden
    return Shape(config.layers, h, 3 * h, h, h, config.vocabulary)


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """That of a configuration of transformers, as a mapping; None where a size is missing."""
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
    """That of a model's directory, or of a model of the hub that is on this machine; None if neither is known."""
    file = Path(model) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            stored = try_to_load_from_cache(str(model), "config.json")
        except HFValidationError:
            return None
        if not isinstance(stored, str):
            return None
        file = Path(stored)
    try:
        return shape_of(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        return None


def reference_shape(origin: Scratch | Base) -> Shape | None:
    """That of the reference that is made from ``origin``."""
    if isinstance(origin, Scratch):
        return scratch_shape(origin)
    shape = read_shape(origin.path)
    return shape and replace(shape, weight=BYTES[origin.precision])
