"""vLLM in process: one AsyncLLM for the policy, one pooling AsyncLLM for each reward model.

The reference is the policy's engine without an adapter, or one more AsyncLLM once it is drawn from.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from infalign.bundle import adapter_rank, positions
from infalign.errors import one_line
from server.concurrency import to_the_end, together
from server.engines.base import Completion, Delta, EnginesDown, Refused, Sampling, Structure
from server.engines.grammar import GrammarCheck
from server.engines.late import LateEngine
from server.engines.outputs import BACKEND, last, listened, params, whole
from server.settings import Settings

BATCHED_TOKENS = 4096


class VllmEngines:
    """All engines on this machine; on CPU each computes on one thread, since they fight over the cores.

    Where ``adapters`` are given, ``policy`` is what they sit on, and each candidate is drawn with the one it names.
    A ``policy`` that is not the ``reference`` leaves that to an engine of its own.
    vLLM's statistics are those of the policy: its Prometheus logger keeps one engine per process.
    """

    def __init__(
        self,
        policy: Path,
        reference: Path,
        reward_models: Sequence[Path],
        settings: Settings,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self.context = min(map(positions, (policy, reference, *reward_models)))
        self._policy_path, self._reward_paths, self._settings = policy, tuple(reward_models), settings
        self._adapters = dict(adapters or {})
        self._requests: dict[str, Any] = {}
        self._loaded = self._rank = 0
        self._policy: Any = None
        self._rewards: list[Any] = []
        self._grammar = GrammarCheck(policy)
        self._reference_path = reference
        self._reference: LateEngine | None = None

    async def start(self) -> None:
        await to_the_end(self._start())  # half started they could not be stopped

    async def _start(self) -> None:
        """Start all side by side: each takes 10 to 30 seconds, most of it imports of its own process."""
        _prepare_environment()
        from vllm.config import StructuredOutputsConfig
        from vllm.platforms import current_platform

        # Of its own it writes to stdout, in its own form.
        logging.getLogger("vllm").handlers.clear()
        logging.getLogger("vllm").propagate = True
        common: dict[str, Any] = {
            "max_model_len": self.context,
            "max_num_seqs": self._settings.max_sequences,
            "dtype": self._settings.dtype,
            "use_tqdm_on_load": False,
        }
        if current_platform.is_cpu():
            # The KV cache is sized outright, so the utilisation (of main memory, on CPU) is only a formality.
            common |= {
                "enforce_eager": True,
                "gpu_memory_utilization": 0.05,
                "kv_cache_memory_bytes": self._settings.kv_cache_mib << 20,
                "distributed_executor_backend": "uni",
                # A seeded request whose prefill is split kills the engine ("CPU Generator does not use offset").
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(self.context, BATCHED_TOKENS),
            }
            if self._settings.dtype == "auto":
                common["dtype"] = "float32"
        else:
            common["gpu_memory_utilization"] = self._settings.gpu_memory
        pooling = {"runner": "pooling", "disable_log_stats": True, **common}
        if not current_platform.is_cpu():
            pooling["gpu_memory_utilization"] /= len(self._reward_paths)
        if self._policy_path != self._reference_path:
            late = {"generation_config": "vllm", "disable_log_stats": True, **common}
            if not current_platform.is_cpu():
                late["gpu_memory_utilization"] = self._settings.reference_gpu_memory
            self._reference = LateEngine(partial(_launch, self._reference_path, **late))
        lora = self._lora()
        # Left to choose, vLLM takes the backend of the first request for all that come after it.
        drawing = {"generation_config": "vllm", "structured_outputs_config": StructuredOutputsConfig(backend=BACKEND)}
        launched = await asyncio.gather(
            asyncio.to_thread(_launch, self._policy_path, **drawing, **lora, **common),
            *(asyncio.to_thread(_launch, path, **pooling) for path in self._reward_paths),
            return_exceptions=True,
        )
        self._policy, *self._rewards = (None if isinstance(one, BaseException) else one for one in launched)
        # From here on clients are connected: an engine that is forked, not spawned, would keep their connections open.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if failed := next((one for one in launched if isinstance(one, BaseException)), None):
            self.stop()  # those that did start
            raise failed

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        engine = self._running(self._policy)
        if sampling.policy is None and self._reference is not None:
            engine = await self._reference.get()
        adapter = self._adapter(sampling.policy)
        try:
            outputs = engine.generate(
                tokens_input(prompt), params(sampling, listen is not None), uuid4().hex, lora_request=adapter
            )
            if listen is None:
                return await whole(outputs, sampling)
            return await listened(outputs, sampling, listen)
        except (VLLMClientError, ValueError) as error:
            raise Refused(one_line(error)) from error

    async def check_structure(self, structure: Structure) -> None:
        from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

        if structure.schema is None:
            return
        if has_xgrammar_unsupported_json_features(structure.schema):
            raise Refused(
                "a schema without multipleOf, uniqueItems, contains, formats that are not known, or a pattern beside "
                "lengths: responses cannot be held to them"
            )
        await self._grammar.check(structure.schema)

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        from vllm.inputs import tokens_input
        from vllm.pooling_params import PoolingParams

        self._running(self._policy)
        # The default applies a sigmoid, which saturates and makes ties.
        raw = PoolingParams(task="classify", use_activation=False)

        async def by(engine: Any, read: list[int]) -> float:
            output = await last(engine.encode(tokens_input(read), raw, uuid4().hex))
            return float(output.outputs.data[0])

        return await together([by(engine, read) for engine, read in zip(self._rewards, tokens, strict=True)])

    async def load(self, policy: str, adapter: Path) -> None:
        from vllm.exceptions import VLLMServerError
        from vllm.lora.request import LoRARequest

        if not self._adapters:
            raise Refused("the policy is a whole model; adapters can be loaded where the policies are adapters")
        if adapter_rank(adapter) > self._rank:
            raise Refused(f"its rank is {adapter_rank(adapter)}; the engine was started for at most {self._rank}")
        if len(self._requests) >= self._settings.max_adapters:
            raise Refused(f"{len(self._requests)} adapters are served already, the most that --max-adapters allows")
        self._loaded += 1
        request = LoRARequest(policy, self._loaded, str(adapter))
        engine = self._running(self._policy)
        try:
            await engine.add_lora(request)
        except VLLMServerError as error:
            raise EnginesDown("an engine has failed") from error
        except Exception as error:  # what failed in the engine comes as no type of its own
            raise Refused(one_line(error)) from error
        self._requests[policy], self._adapters[policy] = request, adapter

    async def unload(self, policy: str) -> None:
        from vllm.exceptions import VLLMServerError

        request = self._requests.pop(policy)
        del self._adapters[policy]
        if self._policy is not None:
            with suppress(VLLMServerError):
                await self._policy.remove_lora(request.lora_int_id)

    async def check(self) -> None:
        late = self._reference.up if self._reference else None
        for engine in (self._running(self._policy), *self._rewards, *([late] if late else [])):
            if engine.errored:
                raise EnginesDown("an engine has died")

    def stop(self) -> None:
        self._grammar.close()
        # vLLM reports its own shutdown as the death of an engine.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        late = self._reference.close() if self._reference else None
        for engine in (self._policy, *self._rewards, late):
            if engine is not None:
                engine.shutdown()
                # Its finaliser shuts down once more at exit, with the interpreter half gone, and prints a stack trace.
                type(engine).__del__ = lambda _: None
        self._policy, self._rewards, self._reference = None, [], None

    def _lora(self) -> dict[str, Any]:
        """What vLLM is to be told of the adapters; the requests that name them are kept."""
        if not self._adapters:
            return {}
        from vllm.config.lora import MaxLoRARanks
        from vllm.lora.request import LoRARequest

        self._requests = {
            name: LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(self._adapters.items(), 1)
        }
        self._loaded = len(self._adapters)
        rank = max(map(adapter_rank, self._adapters.values()))
        self._rank = min(size for size in get_args(MaxLoRARanks) if size >= rank)
        return {
            "enable_lora": True,
            "max_loras": max(len(self._adapters), self._settings.max_adapters),
            "max_lora_rank": self._rank,
        }

    def _adapter(self, policy: str | None) -> Any:
        """What makes ``policy`` of the engine's model; None where it is that model itself."""
        if policy is None or not self._adapters:
            return None
        if policy not in self._requests:  # unloaded since the request came
            raise Refused(f"the policy {policy} is not served any more")
        return self._requests[policy]

    def _running(self, engine: Any) -> Any:
        if engine is None:
            raise EnginesDown("the engines are not up")
        return engine


def _launch(model: Path, **options: Any) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), trust_remote_code=False, **options))


def _prepare_environment() -> None:
    """Environment that vLLM's processes inherit; what the operator has set stays."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Outputs that vLLM's front handles before the event loop has another turn; 128 with log-probabilities take long.
    os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "16")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_LOGS", "-torch._library.triton")  # which warns that it is not there, on CPU
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    # On CPU vLLM replaces the `uni` executor by `mp` unless this is off: a process more per engine, half a GiB each
    # and three times the start-up time. AsyncLLM keeps its engine process either way.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
