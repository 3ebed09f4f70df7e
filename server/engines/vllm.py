"""vLLM in process: one AsyncLLM for the policy, one pooling AsyncLLM for each reward model.

The reference is the policy's engine without an adapter, or one more AsyncLLM once it is drawn from.
"""

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from infalign.bundle import adapter_rank, positions
from infalign.errors import one_line
from server.concurrency import together
from server.engines.base import Completion, Delta, EnginesDown, Refused, RequestFailed, Sampling, Structure
from server.engines.engine import SERVER_PID, Engine
from server.engines.grammar import GrammarCheck
from server.engines.late import LateEngine
from server.engines.outputs import BACKEND, listened, params, reward, whole
from server.engines.refusal import refusal
from server.engines.tuning import EngineOptions, fit_to_model, set_threads
from server.settings import Settings

EXECUTOR = "server.engines.executor.DependentExecutor"
KILLED_EVERY = 0.5
"""Seconds."""


class VllmEngines:
    """All engines on this machine, set up as :mod:`server.engines.tuning` says.

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
        self._policy: Engine | None = None
        self._rewards: list[Engine] = []
        self._grammar = GrammarCheck(policy)
        self._reference_path = reference
        self._reference: LateEngine | None = None
        # Its threads live as long as the engines that they launch, which would end with them.
        self._launcher = ThreadPoolExecutor(1 + len(reward_models), "launch")

    async def start(self) -> None:
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.shield(starting)
        finally:
            # Half started they cannot be stopped, but what is being launched can be killed.
            while not starting.done():
                _kill_launching()
                await asyncio.wait([starting], timeout=KILLED_EVERY)
            await asyncio.gather(starting, return_exceptions=True)

    async def _start(self) -> None:
        """Start all engines."""
        _prepare_environment()
        from vllm.config import StructuredOutputsConfig
        from vllm.platforms import current_platform
        from vllm.utils.gc_utils import freeze_gc_heap
        from vllm.utils.torch_utils import available_cpu_count

        _log_through_root()
        options = EngineOptions(self._settings, self.context, current_platform.is_cpu())
        if current_platform.is_cpu():
            set_threads(self._settings, available_cpu_count())
        if self._policy_path != self._reference_path:
            self._reference = LateEngine(partial(self._launch, "reference", self._reference_path, options.reference()))
        # Left to choose, vLLM takes the backend of the first request for all that come after it.
        structured = {"structured_outputs_config": StructuredOutputsConfig(backend=BACKEND)}
        launches = [("policy", self._policy_path, options.policy() | structured | self._lora())]
        rewards_options = options.reward(len(self._reward_paths))
        launches += [(f"reward model {path.name}", path, rewards_options) for path in self._reward_paths]
        launched = await self._launch_all(launches, side_by_side=current_platform.is_cpu())
        _log_through_root()  # the first launch configures its logger anew
        policy, *rewards = (None if isinstance(one, BaseException) else one for one in launched)
        self._policy, self._rewards = policy, [engine for engine in rewards if engine is not None]
        # From here on clients are connected: an engine that is forked, not spawned, would keep their connections open.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if failed := next((one for one in launched if isinstance(one, BaseException)), None):
            await asyncio.to_thread(self.stop)  # those that did start
            raise failed
        freeze_gc_heap()  # a million objects of modules: each full collection would stop the server for half a second

    async def _launch_all(
        self, launches: Sequence[tuple[str, Path, dict[str, Any]]], side_by_side: bool
    ) -> list[Engine | BaseException]:
        """Launch engines; each takes 10 to 50 seconds, most of it imports of its own process.

        On a GPU one starts after the other. vLLM measures there how much memory its own model takes, and counts what
        another engine takes meanwhile: the cache gets too little then, or none.

        Returns:
            The engines, or why they did not start. Where they start one by one, none is started after a failure.
        """
        loop = asyncio.get_running_loop()
        launching = (loop.run_in_executor(self._launcher, self._launch, *launch) for launch in launches)
        if side_by_side:
            return await asyncio.gather(*launching, return_exceptions=True)
        launched: list[Engine | BaseException] = []
        for one in launching:
            try:
                launched.append(await one)
            except Exception as error:
                return [*launched, error]
        return launched

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        from vllm.exceptions import VLLMClientError, VLLMValidationError
        from vllm.inputs import tokens_input

        engine = self._running()
        if sampling.policy is None and self._reference is not None:
            engine = await self._reference.get()
        adapter = self._adapter(sampling.policy)
        try:
            asked = params(sampling, listen is not None)
            async with engine.call() as llm:
                outputs = llm.generate(tokens_input(prompt), asked, uuid4().hex, lora_request=adapter)
                if listen is None:
                    return await whole(outputs, sampling, engine.heard)
                return await listened(outputs, sampling, engine.heard, listen)
        except VLLMClientError as error:
            parameter = error.parameter if isinstance(error, VLLMValidationError) else None
            raise refusal(str(error), parameter, sampling) from error

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
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.pooling_params import PoolingParams

        self._running()
        # The default applies a sigmoid, which saturates and makes ties.
        raw = PoolingParams(task="classify", use_activation=False)

        async def by(engine: Engine, read: list[int]) -> float:
            try:
                async with engine.call() as llm:
                    return await reward(llm.encode(tokens_input(read), raw, uuid4().hex), engine.heard)
            except VLLMClientError as error:  # nothing that a client could mend
                raise RequestFailed(f"the {engine.role} refused to score ({one_line(error)})") from error

        return await together([by(engine, read) for engine, read in zip(self._rewards, tokens, strict=True)])

    async def load(self, policy: str, adapter: Path) -> None:
        from vllm.lora.request import LoRARequest

        if not self._adapters:
            raise Refused("the policy is a whole model; adapters can be loaded where the policies are adapters")
        if adapter_rank(adapter) > self._rank:
            raise Refused(f"its rank is {adapter_rank(adapter)}; the engine was started for at most {self._rank}")
        if len(self._requests) >= self._settings.max_adapters:
            raise Refused(f"{len(self._requests)} adapters are served already, the most that --max-adapters allows")
        self._loaded += 1
        request = LoRARequest(policy, self._loaded, str(adapter))
        engine = self._running()
        try:
            async with engine.call() as llm:
                await llm.add_lora(request)
        except EnginesDown:
            raise
        except Exception as error:  # what failed in the engine comes as no type of its own
            engine.check()
            raise Refused(one_line(error)) from error
        self._requests[policy], self._adapters[policy] = request, adapter

    async def unload(self, policy: str) -> None:
        request = self._requests.pop(policy)
        del self._adapters[policy]
        with suppress(EnginesDown, RequestFailed):
            async with self._running().call() as llm:
                await llm.remove_lora(request.lora_int_id)

    async def check(self) -> None:
        self._running()
        for engine in self._engines():
            engine.check()

    def stop(self) -> None:
        self._grammar.close()
        # vLLM reports its own shutdown as the death of an engine.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        works = [engine.stop for engine in (self._policy, *self._rewards) if engine is not None]
        if self._reference is not None:
            works.append(partial(_stop_late, self._reference))
        with ThreadPoolExecutor(len(works) or 1) as threads:
            stops = [threads.submit(work) for work in works]
        self._policy, self._rewards, self._reference = None, [], None
        for one in stops:
            one.result()

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
            raise Refused(f"model: the policy {policy} is not served any more", "model")
        return self._requests[policy]

    def _running(self) -> Engine:
        """The policy's engine."""
        if self._policy is None:
            raise EnginesDown("the engines are not up")
        return self._policy

    def _engines(self) -> list[Engine]:
        """Those that are up."""
        late = self._reference.up if self._reference else None
        return [engine for engine in (self._policy, *self._rewards, late) if engine is not None]

    def _launch(self, role: str, model: Path, options: dict[str, Any]) -> Engine:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=str(model), trust_remote_code=False, distributed_executor_backend=EXECUTOR, **options
        )
        llm = AsyncLLM.from_engine_args(fit_to_model(arguments, role, self._settings))
        return Engine(role, llm, self._settings.engine_silence)


def _stop_late(late: LateEngine) -> None:
    with ThreadPoolExecutor(1) as thread:
        closing = thread.submit(late.close)
        while wait([closing], KILLED_EVERY).not_done:
            _kill_launching()
    if (engine := closing.result()) is not None:
        engine.stop()


def _kill_launching() -> None:
    """Kill engine processes that nobody can stop yet, upon which their launch fails."""
    for process in multiprocessing.active_children():
        if process.name.startswith("EngineCore"):
            process.kill()


def _log_through_root() -> None:
    """Have vLLM log as the server does; of its own it writes to stdout, in its own form."""
    from vllm import envs

    log = logging.getLogger("vllm")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(envs.VLLM_LOGGING_LEVEL)


def _prepare_environment() -> None:
    """Environment that vLLM's processes inherit; what the operator has set stays."""
    os.environ[SERVER_PID] = str(os.getpid())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Outputs that vLLM's front handles before the event loop has another turn; 128 with log-probabilities take long.
    os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "16")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_LOGS", "-torch._library.triton")  # which warns that it is not there, on CPU
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of CUDA graphs would be lines of the log
