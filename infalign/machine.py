"""How much memory this process may still take: that of the machine, and of the containers that the process is in.

It needs psutil, which the server and training bring.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Files of a control group: its limit, its usage, and the keys of the usage that the kernel would give back.

The first row is for version 2 of control groups, the second for version 1. What the kernel would give back are copies
of files, such as those of a model that was just read.
"""


def free_memory() -> int:
    """Measure how many bytes this process may still take, of the machine and of its control groups (containers)."""
    return min([psutil.virtual_memory().available, *cgroup_memory()])


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
    for limit, usage, files in CGROUP_FILES:
        try:
            limit_text = (group / limit).read_text(encoding="utf-8").strip()
            usage_bytes = int((group / usage).read_text(encoding="utf-8"))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        except OSError:  # the other version, or a group that is not seen from inside the container
            continue
        if limit_text != "max":
            yield max(0, int(limit_text) - usage_bytes + sum(int(statistics.get(key, 0)) for key in files))
