"""vLLM's executor, in an engine process that ends with the server. vLLM loads this module by its name."""

import os

from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from server.engines import seeded_sampler
from server.engines.engine import SERVER_PID
from server.engines.lifetime import end_with_parent


class DependentExecutor(UniProcExecutor):  # type: ignore[misc] # vLLM is not followed
    """Executor for one device, in a process that ends when the server does. On CPU it installs the seeded sampler."""

    def _init_executor(self) -> None:
        _end_with_parent()
        if current_platform.is_cpu():
            seeded_sampler.install()
        super()._init_executor()


def _end_with_parent() -> None:
    server = int(os.environ[SERVER_PID])
    if server != os.getpid():
        end_with_parent(server)


# A spawned process runs this line before it waits, perhaps for minutes, for the server's first message.
_end_with_parent()
