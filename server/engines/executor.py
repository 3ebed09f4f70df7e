"""VLLM's executor, in an engine process that does not outlive the server. Loaded by vLLM, by its name."""

import os

from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from server.engines import seeded_sampler
from server.engines.engine import SERVER_PID
from server.engines.lifetime import end_with


class DependentExecutor(UniProcExecutor):  # type: ignore[misc] # vLLM is not followed
    """The executor for one device, in a process that ends with the server, with our sampling on CPU."""

    def _init_executor(self) -> None:
        _end_with_server()
        if current_platform.is_cpu():
            seeded_sampler.install()
        super()._init_executor()


def _end_with_server() -> None:
    server = int(os.environ[SERVER_PID])
    if server != os.getpid():
        end_with(server)


# A spawned process gets here before it waits, for minutes, for the first words of the server. A forked one does not.
_end_with_server()
