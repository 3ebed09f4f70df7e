"""Whether engines fit into memory, before anything is loaded."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infalign.errors import TooLittleMemory
from server.engines import memory
from server.engines.memory import Need, check_cpu_memory, check_gpu_memory, engine_need, weight_bytes

GIB = 2**30


def save(path: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, path)


def test_weights_are_counted_in_the_type_of_the_engine(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", a=torch.zeros(10, 3), b=torch.zeros(5, dtype=torch.bfloat16))
    assert weight_bytes(tmp_path, 4) == 140
    assert weight_bytes(tmp_path, 2) == 70
    save(tmp_path / "model.safetensors", a=torch.zeros(10, dtype=torch.int32), b=torch.zeros(4))
    assert weight_bytes(tmp_path, 2) == 48  # packed numbers stay as they are


def test_a_file_counts_once(tmp_path: Path) -> None:
    save(tmp_path / "model-1.safetensors", a=torch.zeros(10))
    os.link(tmp_path / "model-1.safetensors", tmp_path / "same.safetensors")
    assert weight_bytes(tmp_path, 4) == 40


def test_only_what_the_index_names_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "model-1.safetensors", a=torch.zeros(10), b=torch.zeros(1))
    save(tmp_path / "consolidated.safetensors", a=torch.zeros(10))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_bytes(tmp_path, 4) == 44


def test_other_formats_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert weight_bytes(tmp_path, 4) == 0


def vllm_config(model: Path, draft: Path | None = None, quantization: str | None = None) -> Any:
    """What is asked of vLLM's config of an engine."""
    draft_config = SimpleNamespace(model=str(draft), quantization=None, dtype=torch.float32)
    return SimpleNamespace(
        model_config=SimpleNamespace(model=str(model), quantization=quantization, dtype=torch.float32),
        parallel_config=SimpleNamespace(world_size=2, data_parallel_size=3),
        cache_config=SimpleNamespace(kv_cache_memory_bytes=7),
        speculative_config=draft and SimpleNamespace(draft_model_config=draft_config),
    )


def test_devices_share_the_weights_and_replicas_do_not(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", a=torch.zeros(10))
    need = engine_need("policy", vllm_config(tmp_path))
    assert (need.each, need.all) == (27, 27 * 6)
    assert engine_need("policy", vllm_config(tmp_path, quantization="fp8")).weights == 5
    (tmp_path / "draft").mkdir()
    save(tmp_path / "draft" / "model.safetensors", a=torch.zeros(2))
    assert engine_need("policy", vllm_config(tmp_path, tmp_path / "draft")).weights == 48
    assert engine_need("policy", vllm_config(tmp_path, tmp_path)).weights == 40


def test_engines_that_do_not_fit_the_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [Need("policy", 8 * GIB, GIB, 1, 1), Need("reward model reward", 2 * GIB, GIB, 1, 2)]
    monkeypatch.setattr(memory, "free_memory", lambda: 15 * GIB)
    check_cpu_memory(needs)
    monkeypatch.setattr(memory, "free_memory", lambda: 14 * GIB)
    with pytest.raises(TooLittleMemory) as refused:
        check_cpu_memory(needs)
    assert str(refused.value) == (
        "the engines take at least 15.0 GiB, more than the 14.0 GiB that are free (policy: weights 8.0 GiB, KV cache "
        "1.0 GiB; reward model reward: weights 4.0 GiB, KV cache 2.0 GiB); what helps: --dtype bfloat16, a smaller "
        "--kv-cache-mib, smaller models"
    )


def test_an_engine_that_does_not_fit_its_share_of_a_gpu_is_refused() -> None:
    need = Need("policy", 16 * GIB, GIB, 2, 1)
    check_gpu_memory(need, 0.4, 24 * GIB)
    with pytest.raises(TooLittleMemory, match=r"^policy: weights and the cache of one text take at least 9\.0 GiB of"):
        check_gpu_memory(need, 0.3, 24 * GIB)
    check_gpu_memory(need, 0.3, 24 * GIB, offloaded=2 * GIB)
