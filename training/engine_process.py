"""Subprocesses that vLLM draws in.

vLLM changes the process that it runs in: torch's threads, a process group and the memory of the GPU. The training
beside it or after it must not be affected.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from infalign.errors import EngineFailed

GRACE = 20
"""Seconds that a subprocess has to end by itself."""
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of torchrun. An engine's subprocess does not train with the others, so it unsets them."""


def start_process(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start a subprocess. It ends with this process.

    Args:
        target: What it runs. Its first argument is a connection to this process.
        arguments: The other arguments.

    Returns:
        The process, and the connection to it.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what earlier stages have freed
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(target, theirs, arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def receive_result(process: BaseProcess, connection: Connection, name: str, hint: str) -> Any:
    """Receive what a subprocess sends: a pair of a result, and the reason if there is none.

    Args:
        process: The process.
        connection: The connection to it.
        name: What an error calls the process.
        hint: What an error says of how to go on if the process was killed.

    Returns:
        The result.

    Raises:
        EngineFailed: There is no result, or the process was killed.
    """
    try:
        result, failure = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise EngineFailed(
            f"{name} was killed (exit code {process.exitcode}; memory may be too small); {hint}"
        ) from None
    if failure:
        raise EngineFailed(failure)
    return result


def stop_process(process: BaseProcess) -> None:
    """Stop a subprocess, gently if it lets itself be stopped."""
    process.terminate()
    process.join(GRACE)
    process.kill()
    process.join()


def _run(target: Callable[..., None], connection: Connection, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends this process,
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which then clears up after itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in TORCHRUN_VARIABLES:
        os.environ.pop(name, None)
    target(connection, *arguments)


def _end_with_parent() -> None:
    if parent := parent_process():
        wait([parent.sentinel])
        os._exit(1)
