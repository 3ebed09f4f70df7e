"""Estimates, before models are loaded, whether the engines fit into memory.

The estimate counts weights and KV caches alone, at the least that they can take. What it refuses cannot work. What it
accepts may still be too large: vLLM's processes and the computation itself take memory as well.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infalign.errors import TooLittleMemory
from infalign.machine import free_memory
from server.engines.tuning import least_cache

FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of weights that vLLM converts to the engine's own. Others, such as packed integers, stay as they are."""
QUANTIZED = 0.5
"""The least number of bytes of a weight that vLLM quantizes."""
INDEX = "model.safetensors.index.json"
"""Says which files of a directory hold the model, if there are several."""


def weight_bytes(directory: Path, number: float) -> float:
    """Add up the weights of a model, from the headers of its files.

    Args:
        directory: Directory of the model. Files in another format than safetensors do not count.
        number: Bytes that the engine takes for a floating-point number.
    """
    return sum(_tensor_bytes(tensor, number) for file in _files(directory) for tensor in _tensors(file))


def _tensor_bytes(tensor: Mapping[str, Any], number: float) -> float:
    if tensor["dtype"] in FLOATS:
        return float(math.prod(tensor["shape"]) * number)
    start, end = tensor["data_offsets"]
    return float(end - start)


def _files(directory: Path) -> Iterator[Path]:
    """The files that hold the weights. A file that has two names counts once."""
    files = sorted(directory.glob("*.safetensors"))
    if (directory / INDEX).is_file():
        weights = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = [directory / name for name in sorted(set(weights.values()))]
    yield from {(file.stat().st_dev, file.stat().st_ino): file for file in files}.values()


def _tensors(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    yield from (tensor for name, tensor in header.items() if name != "__metadata__")


@dataclass(frozen=True)
class Need:
    """The least memory that an engine takes, in bytes."""

    role: str
    """What the engine is for."""
    weights: float
    """Weights of one replica."""
    cache: float
    """KV cache of one device."""
    devices: int
    """Devices of one replica. They share the weights."""
    replicas: int
    """Replicas of the engine."""

    @property
    def each(self) -> float:
        """Bytes of one device."""
        return self.weights / self.devices + self.cache

    @property
    def all(self) -> float:
        """Bytes of all devices together."""
        return self.each * self.devices * self.replicas


def engine_need(role: str, config: Any) -> Need:
    """Compute what an engine takes.

    Args:
        role: What the engine is for.
        config: The engine's ``VllmConfig``.
    """
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    number = QUANTIZED if model.quantization else model.dtype.itemsize
    weights = weight_bytes(Path(model.model), number)
    if speculative := config.speculative_config:
        draft = speculative.draft_model_config
        if draft is not None and draft.model != model.model:
            weights += weight_bytes(Path(draft.model), QUANTIZED if draft.quantization else draft.dtype.itemsize)
    cache_bytes = cache.kv_cache_memory_bytes or (least_cache(config) or 0)
    return Need(role, weights, cache_bytes, parallel.world_size, parallel.data_parallel_size)


def check_cpu_memory(needs: Sequence[Need]) -> None:
    """Check that engines fit into the memory of this machine together.

    Args:
        needs: What each engine takes.

    Raises:
        TooLittleMemory: They do not fit.
    """
    free = free_memory()
    if sum(need.all for need in needs) > free:
        parts = "; ".join(
            f"{need.role}: weights {_gib(need.weights * need.replicas)}, "
            f"KV cache {_gib(need.cache * need.devices * need.replicas)}"
            for need in needs
        )
        raise TooLittleMemory(
            f"the engines take at least {_gib(sum(need.all for need in needs))}, more than the {_gib(free)} that are "
            f"free ({parts}); what helps: --dtype bfloat16, a smaller --kv-cache-mib, smaller models"
        )


def check_gpu_memory(need: Need, share: float, total: int, offloaded: float = 0) -> None:
    """Check that an engine fits into its share of a GPU's memory.

    Args:
        need: What the engine takes.
        share: The engine's share, ``gpu_memory_utilization``.
        total: Memory of the GPU, in bytes.
        offloaded: Bytes of weights that stay in the memory of the machine.

    Raises:
        TooLittleMemory: It does not fit.
    """
    if need.each - offloaded > share * total:
        raise TooLittleMemory(
            f"{need.role}: weights and the cache of one text take at least {_gib(need.each)} of each GPU, more "
            f"than the {_gib(share * total)} of its share (gpu_memory_utilization {share:g}); what helps: a larger "
            "share, tensor_parallel_size, quantization, a smaller max_model_len"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
