"""How vLLM's engines are set up for the machine at hand. docs/performance.md has the measurements behind it."""

import logging
import math
import os
from dataclasses import replace
from typing import Any

from infalign.errors import InvalidValue
from server.settings import Settings

log = logging.getLogger("infalign.server")
SCHEDULER = "server.engines.scheduler.RewardScheduler"
CPU_BLOCK = 32
"""Tokens of a block of the KV cache on CPU. Candidates share whole blocks of their prompt; vLLM's 128 share little."""
CPU_POLICY_TOKENS = 4096
"""Tokens that the policy reads in one step on CPU, at least."""
CPU_REWARD_TOKENS = 1024
"""Tokens that a reward model reads in one step on CPU. In a long step all candidates of a request would wait, and
the policy's engine meanwhile have no work."""
GPU_REWARD_TOKENS = 8192
"""And on a GPU, which thousands of tokens keep busy. On paper; vLLM's own default is 2,048."""


def set_threads(settings: Settings, cores: int) -> None:
    """Set how many threads the engines have that this process starts on CPU, and how they wait.

    A thread that waits for others sleeps after some microseconds: the engines have the same cores, and it would take
    them from the others. Variables that the operator has set stay, but for threads that ``settings`` has too.

    Args:
        settings: the operator's.
        cores: that this process may use.
    """
    if threads := settings.engine_threads:
        if threads > cores:
            log.warning("--engine-threads %d: this process has %d cores, so %d are used", threads, cores, cores)
        os.environ["OMP_NUM_THREADS"] = str(min(threads, cores))
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def least_cache(model: Any, context: int, block: int) -> int | None:
    """What one text that fills the context takes of the KV cache.

    Args:
        model: vLLM's ``ModelConfig``.
        context: tokens.
        block: tokens of a block of the cache.

    Returns:
        MiB; None where layers keep more or less than keys and values of all tokens (encoders, sliding windows, latent
        attention), which vLLM then checks itself.
    """
    if model.attn_type != "decoder" or model.use_mla or model.get_sliding_window():
        return None
    numbers = 2 * model.hf_text_config.num_hidden_layers * model.get_total_num_kv_heads() * model.get_head_size()
    bytes_per_token: int = numbers * model.dtype.itemsize
    blocks = math.ceil(context / block) + 1  # vLLM keeps one for itself
    return math.ceil(blocks * block * bytes_per_token / 2**20)


def fit_to_model(arguments: Any, role: str, settings: Settings) -> Any:
    """VLLM's arguments of an engine, with what its model cannot do taken out of them.

    Args:
        arguments: vLLM's ``EngineArgs``, with options of :class:`EngineOptions`.
        role: of the engine, for the operator.
        settings: the operator's.

    Raises:
        InvalidValue: the KV cache does not hold one text.
    """
    model, context = arguments.create_model_config(), arguments.max_model_len
    if arguments.kv_cache_memory_bytes:
        least = least_cache(model, context, arguments.block_size)
        if least is not None and settings.kv_cache_mib < least:
            accepted = f"at least {least}, which the {role} takes for a text of {context} tokens"
            raise InvalidValue("--kv-cache-mib", settings.kv_cache_mib, accepted)
    if arguments.enable_chunked_prefill and not model.is_chunked_prefill_supported:
        # Its tokens look at those that follow, so a text is read at once.
        step = max(context, arguments.max_num_batched_tokens)
        if settings.reward_step_tokens:
            log.warning("%s: reads a text at once; --reward-step-tokens is %d for it", role, step)
        return replace(arguments, enable_chunked_prefill=False, max_num_batched_tokens=step)
    return arguments


class EngineOptions:
    """What each engine is told.

    Args:
        settings: the operator's.
        context: tokens that a prompt and its response may have together.
        cpu: whether the engines run on CPU.

    Raises:
        InvalidValue: a block size that the platform does not take, or steps shorter than the sequences in them.
    """

    def __init__(self, settings: Settings, context: int, cpu: bool) -> None:
        self._settings, self._context, self._cpu = settings, context, cpu
        if cpu and settings.block_size and settings.block_size % CPU_BLOCK:
            raise InvalidValue("--block-size", settings.block_size, f"on CPU, a multiple of {CPU_BLOCK}")
        step, sequences = settings.reward_step_tokens, settings.max_sequences
        if step is not None and step < sequences:
            raise InvalidValue("--reward-step-tokens", step, f"at least --max-sequences, which is {sequences}")

    def policy(self) -> dict[str, Any]:
        """Options of the policy's engine."""
        return self._generating(self._settings.gpu_memory)

    def reference(self) -> dict[str, Any]:
        """Options of the reference's, where it has one of its own."""
        return {**self._generating(self._settings.reference_gpu_memory), "disable_log_stats": True}

    def reward(self, models: int) -> dict[str, Any]:
        """Options of a reward model's, where there are so many ``models``."""
        step = max(CPU_REWARD_TOKENS if self._cpu else GPU_REWARD_TOKENS, self._settings.max_sequences)
        return {
            "runner": "pooling",
            "scheduler_cls": SCHEDULER,
            "disable_log_stats": True,
            # Seeds play no part here, so a long text may be read in several steps.
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": self._settings.reward_step_tokens or step,
            **self._common(self._settings.gpu_memory / models),
        }

    def _generating(self, gpu_memory: float) -> dict[str, Any]:
        options = {"generation_config": "vllm", **self._common(gpu_memory)}
        if self._cpu:
            options |= {
                # A seeded request whose prefill is split kills the engine ("CPU Generator does not use offset").
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(self._context, self._settings.max_sequences, CPU_POLICY_TOKENS),
            }
        return options

    def _common(self, gpu_memory: float) -> dict[str, Any]:
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
        # The KV cache is sized outright, so the utilisation (of main memory, on CPU) is only a formality.
        return options | {
            "gpu_memory_utilization": 0.05,
            "kv_cache_memory_bytes": settings.kv_cache_mib << 20,
        }
