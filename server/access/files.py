"""Files that are their owner's alone: keys, audit lines, calibrations."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger("infalign.server")
PRIVATE = 0o600
OTHERS_MAY = 0o066


def open_private(path: str | Path, flags: int) -> int:
    """An ``opener`` for :func:`open`: a file that it creates is its owner's alone, whatever the umask is.

    A file that is there keeps its mode; one that others may read or write is warned of.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, flags, PRIVATE)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and mode & OTHERS_MAY:
        log.warning("%s can be read or written by others than its owner: chmod 600", path)
    return descriptor
