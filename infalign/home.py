"""Where the project keeps what it makes outside the checkout: ``$INFALIGN_HOME``, else ``~/.cache/infalign``."""

import os
from pathlib import Path


def home() -> Path:
    """The directory of bundles and runs."""
    return Path(os.environ.get("INFALIGN_HOME") or Path.home() / ".cache" / "infalign").expanduser()


def bundle_path(name: str) -> Path:
    """Where the bundle called ``name`` lives unless the user says otherwise."""
    return home() / "bundles" / name
