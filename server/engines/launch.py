"""Launches an engine: first its configuration, in which vLLM refuses what it does not support, then its process."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engines.engine import Engine
from server.engines.failure import prepare_notes, start_failure
from server.engines.memory import check_cpu_memory, check_gpu_memory, engine_need
from server.engines.tuning import CPU_CACHE, check_cache, fit_to_model, least_cache
from server.settings import Settings


@dataclass(frozen=True)
class Launch:
    """An engine that is configured and can be launched."""

    role: str
    """What the engine is for. Errors name it."""
    config: Any
    """VLLM's configuration of the engine, a ``VllmConfig``."""
    arguments: Any
    """The arguments that the configuration was made from."""

    def run(self, silence: float) -> Engine:
        """Start the engine's process and load the model. Blocks until the engine is up.

        Args:
            silence: Seconds without a sign of life after which the engine counts as hung.

        Raises:
            EngineFailed: The engine did not start.
        """
        from vllm.v1.engine.async_llm import AsyncLLM

        from server.engines.executor import install_coordinator

        install_coordinator()
        prepare_notes()
        try:
            llm = AsyncLLM.from_vllm_config(self.config, disable_log_stats=self.arguments.disable_log_stats)
        except Exception as error:  # vLLM has errors of many types
            raise start_failure(self.role, error, self.config.instance_id) from error
        return Engine(self.role, llm, silence)


def prepare_launch(role: str, model: Path, options: Mapping[str, Any], settings: Settings) -> Launch:
    """Configure an engine. Nothing is loaded.

    Args:
        role: What the engine is for.
        model: Directory of its model.
        options: Keyword arguments of vLLM's ``AsyncEngineArgs``.
        settings: The operator's settings.

    Raises:
        InvalidValue: The KV cache is too small for one text.
        EngineFailed: vLLM refuses the options.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from server.engines.executor import DependentExecutor, DependentWorkers

    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
    try:
        devices = math.prod(options.get(size, 1) for size in sizes)
        arguments = AsyncEngineArgs(
            model=str(model),
            trust_remote_code=False,
            distributed_executor_backend=DependentExecutor if devices == 1 else DependentWorkers,
            **options,
        )
        arguments = fit_to_model(arguments, role, settings)
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    except Exception as error:  # vLLM refuses with errors of many types
        raise start_failure(role, error) from error
    least = least_cache(config) or 0
    if settings.kv_cache_mib is None and config.cache_config.kv_cache_memory_bytes == CPU_CACHE < least:
        return prepare_launch(role, model, {**options, "kv_cache_memory_bytes": least}, settings)
    check_cache(config, role, settings)
    return Launch(role, config, arguments)


def check_memory(launches: Sequence[Launch]) -> None:
    """Check that engines which are launched together fit into memory.

    Args:
        launches: The engines.

    Raises:
        TooLittleMemory: They do not fit.
    """
    from vllm.platforms import current_platform

    needs = [engine_need(launch.role, launch.config) for launch in launches]
    if current_platform.is_cpu():
        check_cpu_memory(needs)
        return
    for need, launch in zip(needs, launches, strict=True):
        share = launch.config.cache_config.gpu_memory_utilization
        offloaded = launch.arguments.cpu_offload_gb * 2**30
        check_gpu_memory(need, share, current_platform.get_device_total_memory(), offloaded)
