"""Files that only their owner may read: keys, audit log, calibrations."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger("infalign.server")
PRIVATE = 0o600
"""Mode of new files."""
OTHERS_ACCESS = 0o066
"""Mode bits that let group or others read or write."""


def open_private(path: str | Path, flags: int) -> int:
    """Open a file, as an ``opener`` for :func:`open`.

    A new file is readable by its owner only, whatever the umask. An existing file keeps its mode. The log warns if
    others can read or write it.

    Args:
        path: The file.
        flags: As for :func:`os.open`.

    Returns:
        The file descriptor.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, flags, PRIVATE)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and mode & OTHERS_ACCESS:
        log.warning("%s can be read or written by others than its owner: chmod 600", path)
    return descriptor
