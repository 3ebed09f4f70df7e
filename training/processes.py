"""The processes of one run, as ``accelerate launch`` starts them.

The first process builds every stage, and all of them train. They are recognised by the environment variables that
torchrun sets. Without these there is one process, the first.
"""

import os
import time
from pathlib import Path
from typing import TypeVar

from infalign.errors import InvalidValue

SPLITTERS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""Environment variables by which ``accelerate launch`` says that weights are split among processes."""
POLL_SECONDS = 1.0
"""Seconds between two looks at a path."""
Value = TypeVar("Value")


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Say whether this is the first process, which writes the files."""
    return rank() == 0


def check_ctrl(prompts: int) -> None:
    """Check that the solver ``ctrl`` can run in these processes.

    Args:
        prompts: Prompts per step, which the processes share.

    Raises:
        InvalidValue: The prompts cannot be shared evenly, or weights are split among the processes.
    """
    if prompts % count():
        raise InvalidValue("ctrl.prompts", prompts, f"a multiple of the {count()} processes")
    if any(os.environ.get(name, "false").lower() in ("1", "true") for name in SPLITTERS):
        accepted = "rloo, where weights are split among processes; ctrl keeps them whole in each"
        raise InvalidValue("ctrl.solver", "ctrl", accepted)


def broadcast(value: Value) -> Value:
    """Send a value from the first process to all others. The processes wait for each other.

    Args:
        value: The value in this process.

    Returns:
        The value of the first process.
    """
    if count() == 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    [first_value] = broadcast_object_list([value])
    return first_value  # type: ignore[no-any-return]


def wait_for(path: Path) -> None:
    """Wait until the first process has made ``path``.

    It looks again and again, since a stage may take longer than the time limit of torch's collective operations.
    """
    while not path.exists():
        time.sleep(POLL_SECONDS)
