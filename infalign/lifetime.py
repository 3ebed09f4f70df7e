"""Makes a process end when the server does."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(server: int) -> None:
    """Have the kernel kill this process when its parent dies, in whatever way.

    The kernel watches the thread that started this process. It kills the process when that thread ends.

    Args:
        server: Process id of the parent.

    Raises:
        OSError: The kernel does not support it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "this process cannot be made to end with the server")
    if os.getppid() != server:  # the parent died before the call above
        os.kill(os.getpid(), signal.SIGKILL)
