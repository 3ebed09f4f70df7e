"""The machine that a run is on: how much memory there is, and what becomes of memory that is freed."""

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
"""Limit, usage, and the part of the usage that the kernel would give back: of version 2, and of version 1."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def available_memory() -> int:
    """Bytes that this process may still take: of the GPU, or of the machine and the control groups that it is in.

    What the process holds but has no use for is given back first. The processes of a run on one machine share alike.
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


def cgroup_memory(mounted: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Iterator[int]:
    """Bytes below the limit of each control group that this process is in, and of those around it."""
    if not own.is_file():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = mounted / controllers
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            yield from _below_limit(group)
            group = group.parent


def _below_limit(group: Path) -> Iterator[int]:
    for limit, usage, idle in CGROUP_FILES:
        try:
            most = (group / limit).read_text(encoding="utf-8").strip()
            used = int((group / usage).read_text(encoding="utf-8"))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        except OSError:  # the other version, or a group that is not seen from inside the container
            continue
        if most != "max":
            yield max(0, int(most) - used + int(statistics.get(idle, 0)))


def has_gpu() -> bool:
    """Whether there is one that torch can use; torch is not imported just to see that there is none."""
    if "torch" not in sys.modules and not NVIDIA.exists():
        return False
    import torch

    return bool(torch.cuda.is_available())


def keep_freed_memory(keep: bool) -> None:
    """Whether glibc keeps what is freed for what is allocated next, or hands blocks of a MiB and more back.

    Keeping takes a quarter off the time of training a small model: glibc's defaults map and unmap every activation
    anew. It also leaves holes that glibc does not fill again, since tensors are aligned (measured with version 2.36:
    a pass on 135M weights took 4.1 GB so, 2.5 GB with blocks handed back), which a large model cannot afford.
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
