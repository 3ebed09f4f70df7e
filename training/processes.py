"""The processes of one run, as ``accelerate launch`` starts them: the first makes everything, all of them train.

Known from the environment that torchrun sets; a run that nothing launched is one process, the first.
"""

import os
import time
from pathlib import Path
from typing import TypeVar

POLL_SECONDS = 1.0
Value = TypeVar("Value")


def count() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def agree(first_says: Value) -> Value:
    """What the first process says, in all of them; they wait for each other."""
    if count() == 1:
        return first_says
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    [agreed] = broadcast_object_list([first_says])
    return agreed  # type: ignore[no-any-return]


def wait_for(path: Path) -> None:
    """Until the first process has made ``path``; by looking, for it may take longer than a collective call may."""
    while not path.exists():
        time.sleep(POLL_SECONDS)
