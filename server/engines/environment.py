"""The environment of vLLM: variables that its processes inherit, and where it logs."""

import logging
import os

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
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # How many outputs vLLM handles before it yields to the event loop. Its default of 128 blocks the loop for long.
    os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "16")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_LOGS", "-torch._library.triton")  # it warns on CPU that Triton is missing
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of CUDA graphs would become lines of the log
