"""vLLM's executors, in engine processes that end with the server. Engine processes load this module.

They install changes of vLLM's sampler: for log-probabilities, and on CPU for seeds.
"""

import os
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.engine.coordinator import DPCoordinatorProc
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from infalign.lifetime import end_with_parent
from server.engines import mixed_logprobs, seeded_sampler
from server.engines.engine import SERVER_PID
from server.engines.failure import note_failures, watch_reports


class DependentExecutor(UniProcExecutor):  # type: ignore[misc] # vLLM is not followed
    """Executor for one device."""

    def _init_executor(self) -> None:
        _prepare_process()
        note_failures(self.vllm_config.instance_id)
        super()._init_executor()


class DependentWorkers(MultiprocExecutor):  # type: ignore[misc]
    """Executor for several devices, with a process for each. These processes end with the engine's."""

    def _init_executor(self) -> None:
        _prepare_process()
        note_failures(self.vllm_config.instance_id)
        os.environ[SERVER_PID] = str(os.getpid())  # the parent of the workers
        super()._init_executor()


_run_coordinator = DPCoordinatorProc.run_coordinator


def run_coordinator(*arguments: Any, **options: Any) -> None:
    """Run vLLM's process that balances the replicas of an engine, so that it ends with the server."""
    _prepare_process()
    _run_coordinator(*arguments, **options)


def install_coordinator() -> None:
    """Let vLLM start its coordinators by :func:`run_coordinator`."""
    DPCoordinatorProc.run_coordinator = run_coordinator


def _prepare_process() -> None:
    parent = int(os.environ[SERVER_PID])
    if parent == os.getpid():  # the server itself
        return
    end_with_parent(parent)
    watch_reports()
    mixed_logprobs.install()
    if current_platform.is_cpu():
        seeded_sampler.install()


# A spawned process runs this line before it waits, perhaps for minutes, for the server's first message.
_prepare_process()
