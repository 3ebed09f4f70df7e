"""A full disk, as one error: libraries report it each in their own way, some not as what it is."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infalign.errors import DiskFull, InfAlignError

LEAST = 1 << 20
"""Bytes free, below which whatever failed is put down to it."""


@contextmanager
def watched(*places: Path) -> Iterator[None]:
    """Run what writes below ``places``.

    Raises:
        DiskFull: it failed, and one of them has no room.
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
