"""Reports a full disk as one clear error. Libraries report it in different ways, some of them misleading."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infalign.errors import DiskFull, InfAlignError

LEAST = 1 << 20
"""Bytes. A failure with less free space than this is put down to the disk."""


@contextmanager
def report_full_disk(*places: Path) -> Iterator[None]:
    """Run a block and turn a failure into :class:`~infalign.errors.DiskFull` if the disk is full.

    Args:
        places: Directories that the block writes to.

    Raises:
        DiskFull: The block failed and one of the directories has no room left.
    """
    try:
        yield
    except InfAlignError:
        raise
    except Exception as error:
        full = next((place for place in places if shutil.disk_usage(place).free < LEAST), None)
        if full is None and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = places[0]
        if full is None:
            raise
        raise DiskFull(
            f"{full}: no space left on the disk; what was finished is kept, and the next run goes on"
        ) from error
