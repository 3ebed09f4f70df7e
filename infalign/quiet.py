"""Keeps libraries quiet: what vLLM and torch write about themselves is of no use to whoever runs a command."""

import os

QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # it notes how memory is bound to NUMA nodes
    "TORCH_LOGS": "-torch._library.triton",  # it warns on CPU that Triton is missing
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
"""Environment variables and their values. Errors are still written."""


def keep_libraries_quiet() -> None:
    """Set the environment variables of :data:`QUIET`, except those that the user has set.

    torch reads its own when it is imported. Processes that are started later inherit all of them.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
