"""API keys for tests, and the file that lets them in."""

import json
from pathlib import Path
from typing import Any

from server.access.keys import KEY_PREFIX, hash_key

RECORDS: dict[str, dict[str, Any]] = {
    "app": {"roles": ["generate"]},
    "prober": {"roles": ["probe"]},
    "safety": {"roles": ["generate", "probe"]},
    "root": {"roles": ["admin"]},
    "rare": {"roles": ["generate"], "requests_per_minute": 2},
    "single": {"roles": ["generate", "probe"], "concurrent": 1},
}


def key(name: str) -> str:
    """The key of that name."""
    return f"{KEY_PREFIX}of-{name}"


def bearer(name: str) -> dict[str, str]:
    """The header it is sent in."""
    return {"Authorization": f"Bearer {key(name)}"}


def keys_file(directory: Path, *names: str) -> Path:
    """A file with the keys of these names, or of all."""
    records = {name: {"sha256": hash_key(key(name).encode()), **RECORDS[name]} for name in names or RECORDS}
    path = directory / "keys.json"
    path.write_text(json.dumps({"keys": records}))
    path.chmod(0o600)
    return path
