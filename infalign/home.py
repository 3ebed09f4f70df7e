"""The directory of bundles and runs, outside the checkout: ``$INFALIGN_HOME``, or ``~/.cache/infalign``."""

import os
from pathlib import Path


def home() -> Path:
    """Get the directory of bundles and runs.

    Returns:
        The path, which need not exist.
    """
    return Path(os.environ.get("INFALIGN_HOME") or Path.home() / ".cache" / "infalign").expanduser()


def bundle_path(name: str) -> Path:
    """Get the default directory of a bundle.

    Args:
        name: Name of the bundle.

    Returns:
        The path, which need not exist.
    """
    return home() / "bundles" / name
