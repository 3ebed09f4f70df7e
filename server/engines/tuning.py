"""Options of vLLM's engines for the machine at hand. docs/results/performance.md has the measurements behind them."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infalign.errors import InvalidValue
from server.engines.overrides import NONE
from server.settings import Settings

log = logging.getLogger("infalign.server")
SCHEDULER = "server.engines.scheduler.RewardScheduler"
CPU_BLOCK = 32
"""Tokens per block of the KV cache on CPU. Candidates share whole blocks of their prompt, so small ones share more."""
CPU_CACHE = 256 << 20
"""Bytes of an engine's KV cache on CPU, unless a text that fills the context takes more."""
CPU_POLICY_TOKENS = 4096
"""The least number of tokens that the policy may read in one step on CPU."""
CPU_REWARD_TOKENS = 1024
"""Tokens that a reward model reads in one step on CPU.

In a long step, all candidates of a request would wait, and the policy's engine would have no work meanwhile.
"""
GPU_REWARD_TOKENS = 8192
"""Tokens that a reward model reads in one step on GPU, which needs thousands to be busy.

This is by calculation, not measured. vLLM's own default is 2,048.
"""


def set_threads(settings: Settings, cores: int) -> None:
    """Set the number of threads of the engines on CPU, and how idle threads wait.

    Idle threads sleep after some microseconds. All engines use the same cores, so spinning threads would slow the
    others down. Environment variables that the operator has set stay, except that ``--engine-threads`` overrides
    OMP_NUM_THREADS.

    Args:
        settings: The operator's settings.
        cores: How many cores this process may use.
    """
    if threads := settings.engine_threads:
        if threads > cores:
            log.warning("--engine-threads %d: this process has %d cores, so %d are used", threads, cores, cores)
        os.environ["OMP_NUM_THREADS"] = str(min(threads, cores))
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    # With several devices per engine, vLLM would bind each to a NUMA node of its own, and refuse if there are too few.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def least_cache(config: Any) -> int | None:
    """Compute how much of the KV cache one text that fills the context takes.

    Args:
        config: The engine's ``VllmConfig``.

    Returns:
        Bytes of each device. None if the model's layers do not keep keys and values of all tokens (encoders, sliding
        windows, latent attention), if the cache has another type than the model, or if vLLM fits the context to the
        cache. vLLM checks those itself.
    """
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    if model.attn_type != "decoder" or model.use_mla or model.get_sliding_window():
        return None
    if cache.cache_dtype != "auto" or model.original_max_model_len == -1:
        return None
    heads = model.get_num_kv_heads(parallel)
    numbers = 2 * model.get_num_layers(parallel) * heads * model.get_head_size()
    blocks = math.ceil(model.max_model_len / cache.block_size) + 1  # vLLM reserves one block
    return int(blocks * cache.block_size * numbers * model.dtype.itemsize)


def check_cache(config: Any, role: str, settings: Settings) -> None:
    """Check that the KV cache holds one text, where the cache has a size of its own.

    Args:
        config: The engine's ``VllmConfig``.
        role: What the engine is for.
        settings: The operator's settings.

    Raises:
        InvalidValue: The KV cache is too small for one text.
    """
    size, least = config.cache_config.kv_cache_memory_bytes, least_cache(config)
    if not size or not least or size >= least:
        return
    text = f"which the {role} takes for a text of {config.model_config.max_model_len} tokens"
    if settings.kv_cache_mib and size == settings.kv_cache_mib << 20:
        raise InvalidValue("--kv-cache-mib", settings.kv_cache_mib, f"at least {math.ceil(least / 2**20)}, {text}")
    raise InvalidValue("kv_cache_memory_bytes", size, f"at least {least}, {text}")


def fit_to_model(arguments: Any, role: str, settings: Settings) -> Any:
    """Adapt an engine's arguments to what its model supports.

    Args:
        arguments: vLLM's ``EngineArgs``, with options from :class:`EngineOptions`.
        role: What the engine is for. Log lines name it.
        settings: The operator's settings.

    Returns:
        The adapted arguments.
    """
    model = arguments.create_model_config()
    if arguments.enable_chunked_prefill and not model.is_chunked_prefill_supported:
        # Tokens of such a model attend to later tokens, so a text must be read in one step.
        step = max(model.max_model_len, arguments.max_num_batched_tokens)
        if settings.reward_step_tokens:
            log.warning("%s: reads a text at once; --reward-step-tokens is %d for it", role, step)
        return replace(arguments, enable_chunked_prefill=False, max_num_batched_tokens=step)
    return arguments


class EngineOptions:
    """Creates the options of each engine, as keyword arguments of vLLM's ``AsyncEngineArgs``.

    Args:
        settings: The operator's settings.
        context: Largest length of prompt and response together, in tokens.
        cpu: Whether the engines run on CPU.

    Raises:
        InvalidValue: The platform does not accept the block size, or reward models would read fewer tokens in a step
            than there are sequences.
    """

    def __init__(self, settings: Settings, context: int, cpu: bool) -> None:
        self._settings, self._context, self._cpu = settings, context, cpu
        if cpu and settings.block_size and settings.block_size % CPU_BLOCK:
            raise InvalidValue("--block-size", settings.block_size, f"on CPU, a multiple of {CPU_BLOCK}")
        step, sequences = settings.reward_step_tokens, settings.max_sequences
        if step is not None and step < sequences:
            raise InvalidValue("--reward-step-tokens", step, f"at least --max-sequences, which is {sequences}")

    def policy(self, own: Mapping[str, Any] = NONE) -> dict[str, Any]:
        """Return the options of the policy's engine.

        Args:
            own: What the operator sets for this engine. It overrides everything else.
        """
        return self._generation_options(self._settings.gpu_memory, own)

    def reference(self, own: Mapping[str, Any] = NONE) -> dict[str, Any]:
        """Return the options of the reference's engine, if it has one of its own.

        Args:
            own: What the operator sets for this engine.
        """
        return {**self._generation_options(self._settings.reference_gpu_memory, own), "disable_log_stats": True}

    def reward(self, models: int, own: Mapping[str, Any] = NONE) -> dict[str, Any]:
        """Return the options of a reward model's engine.

        Args:
            models: The number of reward models, which share their part of the GPU memory; 0 if no engine scores.
            own: What the operator sets for this engine.
        """
        return self._classifier_options(self._settings.gpu_memory / max(1, models), own)

    def scorer(self, own: Mapping[str, Any] = NONE) -> dict[str, Any]:
        """Return the options of the prefix scorer's engine.

        Args:
            own: What the operator sets for this engine.
        """
        return self._classifier_options(self._settings.scorer_gpu_memory, own)

    def _classifier_options(self, gpu_memory: float, own: Mapping[str, Any]) -> dict[str, Any]:
        step = max(CPU_REWARD_TOKENS if self._cpu else GPU_REWARD_TOKENS, self._sequences(own))
        return {
            "runner": "pooling",
            "scheduler_cls": SCHEDULER,
            "disable_log_stats": True,
            # A classifier does not sample, so a long text may be read in several steps.
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": self._settings.reward_step_tokens or step,
            **self._common_options(gpu_memory),
            **own,
        }

    def _generation_options(self, gpu_memory: float, own: Mapping[str, Any]) -> dict[str, Any]:
        options = {"generation_config": "vllm", **self._common_options(gpu_memory)}
        if self._cpu:
            length = own.get("max_model_len") or self._context
            step = (
                max(length, self._sequences(own), CPU_POLICY_TOKENS) if length and length > 0 else None
            )  # "auto" is -1
            # With chunked prefill a seeded request kills the engine ("CPU Generator does not use offset").
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": step}
        return {**options, **own}

    def _sequences(self, own: Mapping[str, Any]) -> int:
        return own.get("max_num_seqs") or self._settings.max_sequences

    def _common_options(self, gpu_memory: float) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {
            "max_model_len": self._context,
            "max_num_seqs": settings.max_sequences,
            "dtype": settings.dtype,
            "use_tqdm_on_load": False,
        }
        if settings.block_size or self._cpu:
            options["block_size"] = settings.block_size or CPU_BLOCK
        if self._cpu and not settings.compile:
            options["enforce_eager"] = True
        if not self._cpu:
            return options | {"gpu_memory_utilization": gpu_memory}
        if settings.dtype == "auto":
            options["dtype"] = "float32"
        # The size of the KV cache is given, so vLLM does not use the memory utilization.
        return options | {
            "gpu_memory_utilization": 0.05,
            "kv_cache_memory_bytes": settings.kv_cache_mib << 20 if settings.kv_cache_mib else CPU_CACHE,
        }
