"""The machine that a run is on: how much memory there is, and what happens to memory that is freed."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil

CGROUPS, OWN_CGROUPS, NVIDIA = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/driver/nvidia/version")
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of a control group: its limit, its usage, and the key of the usage that the kernel would give back.

The first row is for version 2 of control groups, the second for version 1.
"""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def available_memory() -> int:
    """Measure how many bytes this process may still take.

    It is memory of the GPU, or else of the machine and of the control groups (containers) that the process is in. The
    process first gives back what it holds but does not use. Processes of one run on one machine get equal shares.
    """
    gc.collect()
    if has_gpu():
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])
    if libc := _glibc():
        libc.malloc_trim(0)
    free = min([psutil.virtual_memory().available, *cgroup_memory()])
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cgroup_memory(mount: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Iterator[int]:
    """Measure the room below the limit of every control group that this process is in.

    Args:
        mount: Where control groups are mounted.
        own: File that names the control groups of this process.

    Yields:
        Bytes, for each group that has a limit and for those around it.
    """
    if not own.is_file():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = mount / controllers
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            yield from _below_limit(group)
            group = group.parent


def _below_limit(group: Path) -> Iterator[int]:
    for limit, usage, idle in CGROUP_FILES:
        try:
            limit_text = (group / limit).read_text(encoding="utf-8").strip()
            usage_bytes = int((group / usage).read_text(encoding="utf-8"))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        except OSError:  # the other version, or a group that is not seen from inside the container
            continue
        if limit_text != "max":
            yield max(0, int(limit_text) - usage_bytes + int(statistics.get(idle, 0)))


def has_gpu() -> bool:
    """Say whether torch can use a GPU. Torch is not imported just to find out that there is none."""
    if "torch" not in sys.modules and not NVIDIA.exists():
        return False
    import torch

    return bool(torch.cuda.is_available())


def keep_freed_memory(keep: bool) -> None:
    """Make glibc keep freed memory for later, or give large blocks back to the system.

    Keeping it saves a quarter of the time of training a small model, since glibc would otherwise map and unmap every
    activation. It also leaves holes that glibc cannot reuse, since tensors are aligned. A large model cannot afford
    them: with glibc 2.36, a pass on 135M weights took 4.1 GB with memory kept and 2.5 GB with blocks given back.

    Args:
        keep: Whether to keep it. If not, blocks of a MiB and more are given back.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, 1 << (30 if keep else 20))
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        libc.mallopt(M_TOP_PAD, 1 << 28)


@cache
def _glibc() -> Any:
    """The C library, if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
