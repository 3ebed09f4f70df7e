"""Processes that do not outlive the server."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with(server: int) -> None:
    """Have the kernel kill this process when its parent, the process ``server``, dies, however that dies.

    The kernel goes by the thread that started this process: it is killed when that thread ends.

    Raises:
        OSError: the kernel does not take it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "this process cannot be made to end with the server")
    if os.getppid() != server:  # it died before
        os.kill(os.getpid(), signal.SIGKILL)
