"""Engines that run vLLM on this machine: an AsyncLLM for the policy and one for each reward model.

The reference is the policy's engine without an adapter. If the policy is not an adapter, the reference is another
AsyncLLM, launched when it is first needed, or with the others if it is a judge.
"""

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from uuid import uuid4

from infalign.errors import one_line
from infalign.files import score_values
from infalign.imports import quick_imports
from server.concurrency import gather_all, run_to_end
from server.engines.base import (
    Completion,
    Delta,
    EnginesDown,
    NextToken,
    Refused,
    RequestFailed,
    Sampling,
    Structure,
    compute_reward,
)
from server.engines.engine import Engine
from server.engines.environment import log_through_root, prepare_environment
from server.engines.grammar import GrammarCheck
from server.engines.late import LateEngine
from server.engines.launch import Launch, check_memory
from server.engines.lora import LoraAdapters
from server.engines.outputs import (
    next_token_params,
    read_final,
    read_next_token,
    read_outputs,
    read_stream,
    sampling_params,
)
from server.engines.overrides import Overrides
from server.engines.plan import Plan
from server.engines.refusal import refusal
from server.engines.tuning import set_threads
from server.settings import Settings

KILL_SECONDS = 0.5
"""Seconds between two attempts to kill engine processes that are being launched."""


class VllmEngines:
    """All engines on this machine, set up as :mod:`server.engines.tuning` says. Implements :class:`Engines`.

    vLLM's own metrics are those of the policy's engine: vLLM's Prometheus logger supports one engine per process.

    Args:
        policy: Directory of the policy. If there are ``adapters``, the model that they belong to.
        reference: Directory of the reference. If it differs from ``policy``, the reference gets an engine of its own.
        reward_models: Directories of the reward models, in the order of their rewards.
        settings: The operator's settings.
        adapters: Directories of LoRA adapters by policy name. Each candidate is drawn with the adapter of its policy.
        overrides: What the operator sets by vLLM's names.
        reference_judges: Whether the reference is a judge. Its engine is then started with the others.
        scorer: Directory of the prefix scorer, if there is one. Its engine is launched when it is first needed.
    """

    def __init__(
        self,
        policy: Path,
        reference: Path,
        reward_models: Sequence[Path],
        settings: Settings,
        adapters: Mapping[str, Path] | None = None,
        overrides: Overrides | None = None,
        reference_judges: bool = False,
        scorer: Path | None = None,
    ) -> None:
        self._settings, self._reference_judges = settings, reference_judges
        self._plan = Plan(policy, reference, tuple(reward_models), settings, scorer, overrides or Overrides())
        self.context = self._plan.context
        self._score_values = tuple(map(score_values, reward_models))
        self._adapters = LoraAdapters(adapters or {}, settings.max_adapters)
        self._policy: Engine | None = None
        self._rewards: list[Engine] = []
        self._grammar = GrammarCheck(policy)
        self._reference: LateEngine | None = None
        self._scorer: LateEngine | None = None
        # An engine process ends with the thread that launched it, so the threads live as long as this object.
        self._launcher = ThreadPoolExecutor(1 + len(reward_models), "launch")

    async def start(self) -> None:
        with quick_imports():
            await self._start_or_kill()

    async def _start_or_kill(self) -> None:
        """Start all engines. If that is given up, kill the processes that are starting."""
        start_task = asyncio.create_task(self._start())
        try:
            await asyncio.shield(start_task)
        finally:
            # Engines that are starting cannot be stopped, but their processes can be killed.
            while not start_task.done():
                _kill_launching()
                await asyncio.wait([start_task], timeout=KILL_SECONDS)
            await asyncio.gather(start_task, return_exceptions=True)

    async def _start(self) -> None:
        """Start all engines."""
        prepare_environment()
        from vllm.platforms import current_platform
        from vllm.utils.gc_utils import freeze_gc_heap
        from vllm.utils.torch_utils import available_cpu_count

        log_through_root()
        is_cpu = current_platform.is_cpu()
        if is_cpu:
            set_threads(self._settings, available_cpu_count())
        launches = await asyncio.to_thread(self._plan.prepare, is_cpu, self._adapters.options())
        if self._plan.has_reference:
            self._reference = LateEngine("reference", partial(self._launch, self._plan.prepare_reference, is_cpu))
        if self._plan.scorer:
            self._scorer = LateEngine("prefix scorer", partial(self._launch, self._plan.prepare_scorer, is_cpu))
        results = await self._launch_all(launches, in_parallel=is_cpu)
        log_through_root()  # the first launch has configured vLLM's logger again
        policy, *rewards = (None if isinstance(result, BaseException) else result for result in results)
        self._policy, self._rewards = policy, [engine for engine in rewards if engine is not None]
        # Clients connect from here on. An engine process that is forked later would keep their connections open.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if self._reference and self._reference_judges and len(results) == len(launches):
            try:
                await self._reference.get()
            except EnginesDown as error:
                results.append(error)
        if failure := next((result for result in results if isinstance(result, BaseException)), None):
            await asyncio.to_thread(self.stop)  # stops the engines that did start
            raise failure
        self.context = min([self.context, *(engine.context for engine in self._engines())])  # vLLM may have chosen it
        freeze_gc_heap()  # a full collection of all modules' objects would stop the server for half a second

    async def _launch_all(self, launches: Sequence[Launch], in_parallel: bool) -> list[Engine | BaseException]:
        """Launch engines. Each takes 10 to 50 seconds, most of it for imports.

        On a GPU they start one after the other. vLLM measures free memory there while it loads a model. It would count
        the memory that another engine takes meanwhile as its own, and find too little for its cache.

        Args:
            launches: the engines.
            in_parallel: whether to start them at the same time.

        Returns:
            The engines, or the errors of those that did not start. If they start one by one, the first error ends the
            list.
        """
        loop = asyncio.get_running_loop()
        silence = self._settings.engine_silence
        futures = (loop.run_in_executor(self._launcher, launch.run, silence) for launch in launches)
        if in_parallel:
            return await asyncio.gather(*futures, return_exceptions=True)
        results: list[Engine | BaseException] = []
        for future in futures:
            try:
                results.append(await future)
            except Exception as error:
                return [*results, error]
        return results

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        from vllm.exceptions import VLLMClientError, VLLMValidationError
        from vllm.inputs import tokens_input

        engine = self._policy_engine() if sampling.policy is not None else await self._reference_engine()
        adapter = self._adapters.request(sampling.policy)
        try:
            params = sampling_params(sampling, listen is not None)
            async with engine.call() as llm:
                options = {"lora_request": adapter, "reasoning_ended": sampling.reasoning_ended}
                outputs = llm.generate(tokens_input(prompt), params, uuid4().hex, **options)
                if listen is None:
                    return await read_final(outputs, sampling, engine.note_output)
                return await read_stream(outputs, sampling, engine.note_output, listen)
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
        self._policy_engine()

        async def score_with(engine: Engine, values: tuple[float, ...], text: list[int]) -> float:
            return compute_reward(await _classify(engine, text), values)

        each = zip(self._rewards, self._score_values, tokens, strict=True)
        return await gather_all([score_with(*one) for one in each])

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int]) -> NextToken:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        engine = await self._reference_engine()
        try:
            async with engine.call() as llm:
                outputs = llm.generate(tokens_input(prompt), next_token_params(tokens), uuid4().hex)
                return await read_next_token(outputs, tokens, engine.note_output)
        except VLLMClientError as error:  # the client cannot do anything about it
            raise RequestFailed(f"the {engine.role} refused to judge ({one_line(error)})") from error

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        self._policy_engine()
        if self._scorer is None:
            raise EnginesDown("there is no prefix scorer")
        return await _classify(await self._scorer.get(), tokens)

    async def load(self, policy: str, adapter: Path) -> None:
        await self._adapters.load(self._policy_engine(), policy, adapter)

    async def unload(self, policy: str) -> None:
        await self._adapters.unload(self._policy, policy)

    async def check(self) -> None:
        self._policy_engine()
        for engine in self._engines():
            engine.check()

    async def discard_failed(self) -> list[EnginesDown]:
        failures = []
        for late in self._optional_engines():
            engine = late.engine
            try:
                if engine is not None:
                    engine.check()
            except EnginesDown as error:
                failures.append(error)
                try:
                    await run_to_end(asyncio.to_thread(engine.stop))
                finally:  # not before: the next one needs the memory
                    late.discard()
        return failures

    def stop(self) -> None:
        self._grammar.close()
        # vLLM logs its own shutdown as the death of an engine.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        stops = [engine.stop for engine in (self._policy, *self._rewards) if engine is not None]
        stops += [partial(_stop_late, late) for late in (self._reference, self._scorer) if late is not None]
        with ThreadPoolExecutor(len(stops) or 1) as threads:
            futures = [threads.submit(work) for work in stops]
        self._policy, self._rewards, self._reference, self._scorer = None, [], None, None
        for result in futures:
            result.result()

    def _policy_engine(self) -> Engine:
        """The policy's engine, if it is up."""
        if self._policy is None:
            raise EnginesDown("the engines are not up")
        return self._policy

    async def _reference_engine(self) -> Engine:
        """The engine of the reference: one of its own, or the policy's without an adapter."""
        engine = self._policy_engine()
        return engine if self._reference is None else await self._reference.get()

    def _engines(self) -> list[Engine]:
        """The engines that are up, and run all the time."""
        judge = self._reference.engine if self._reference and self._reference_judges else None
        return [engine for engine in (self._policy, *self._rewards, judge) if engine is not None]

    def _optional_engines(self) -> list[LateEngine]:
        """The engines that are launched when they are first needed."""
        reference = None if self._reference_judges else self._reference
        return [late for late in (reference, self._scorer) if late is not None]

    def _launch(self, prepare: Callable[[bool], Launch], is_cpu: bool) -> Engine:
        launch = prepare(is_cpu)
        check_memory([launch])
        return launch.run(self._settings.engine_silence)


async def _classify(engine: Engine, tokens: list[int]) -> list[float]:
    """Compute the outputs of a classifier, without an activation function."""
    from vllm.exceptions import VLLMClientError
    from vllm.inputs import tokens_input
    from vllm.pooling_params import PoolingParams

    # By default vLLM applies a sigmoid. It saturates, and saturated rewards tie.
    raw = PoolingParams(task="classify", use_activation=False)
    try:
        async with engine.call() as llm:
            return await read_outputs(llm.encode(tokens_input(tokens), raw, uuid4().hex), engine.note_output)
    except VLLMClientError as error:  # the client cannot do anything about it
        raise RequestFailed(f"the {engine.role} refused to read ({one_line(error)})") from error


def _stop_late(late: LateEngine) -> None:
    with ThreadPoolExecutor(1) as thread:
        close_future = thread.submit(late.close)
        while wait([close_future], KILL_SECONDS).not_done:
            _kill_launching()
    if (engine := close_future.result()) is not None:
        engine.stop()


def _kill_launching() -> None:
    """Kill engine processes that are being launched and cannot be stopped yet. Their launch fails then."""
    for process in multiprocessing.active_children():
        if process.name.startswith("EngineCore"):
            process.kill()
