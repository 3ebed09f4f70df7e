"""VLLM's executor, in an engine process that does not outlive the server. Loaded by vLLM, by its name."""

import ctypes
import os
import signal

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from server.engines.engine import SERVER_PID

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class DependentExecutor(UniProcExecutor):  # type: ignore[misc] # vLLM is not followed
    """The executor for one device, in a process that the kernel kills when the server dies, however that dies.

    The kernel goes by the thread that started the process: the engine is killed when that thread ends.
    """

    def _init_executor(self) -> None:
        _die_with_server()
        super()._init_executor()


def _die_with_server() -> None:
    server = int(os.environ[SERVER_PID])
    if server == os.getpid():
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "the engine cannot be made to end with the server")
    if os.getppid() != server:  # it died before
        os.kill(os.getpid(), signal.SIGKILL)


# A spawned process gets here before it waits, for minutes, for the first words of the server. A forked one does not.
_die_with_server()
