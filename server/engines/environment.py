"""The environment of vLLM: variables that its processes inherit, and where it logs."""

import logging
import os

from infalign.quiet import keep_libraries_quiet
from server.engines.engine import SERVER_PID


def log_through_root() -> None:
    """Let vLLM log through the root logger. By default it writes to stdout in its own format."""
    from vllm import envs

    log = logging.getLogger("vllm")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(envs.VLLM_LOGGING_LEVEL)


def prepare_environment() -> None:
    """Set environment variables for vLLM's processes, except those that the operator has set."""
    os.environ[SERVER_PID] = str(os.getpid())
    keep_libraries_quiet()
    # How many outputs vLLM handles before it yields to the event loop. Its default of 128 blocks the loop for long.
    os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "16")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of CUDA graphs would become lines of the log
