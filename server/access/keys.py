"""The file of API keys. It says who may call the server, and what for.

    {"keys": {"app": {"sha256": "...", "roles": ["generate"], "requests_per_minute": 60, "concurrent": 4}}}

The file contains only hashes. A key has 256 random bits, so a plain SHA-256 is enough: a salted or slow hash would only
help against guessing.
"""

import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infalign.errors import InfAlignError
from infalign.validation import explain
from server.access.files import open_private

Role = Literal["generate", "probe", "admin"]
"""``generate``: decode and score. ``probe``: worst-of-n, and candidates of the lower half. ``admin``: everything."""
KEY_PREFIX = "sk-infalign-"
"""Start of every key, by which secret scanners recognize it."""
PUBLIC_FIELDS = {"roles", "requests_per_minute", "concurrent"}
"""Fields whose values may appear in an error. A key that was pasted in place of its hash must not reach a log."""


class BadKeysFile(InfAlignError):
    """A keys file cannot be read or written, or is not valid.

    Args:
        path: The file.
        why: The reason.
    """

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"--keys {path}: {why}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeyRecord(_Strict):
    """What the file says of one key."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key, hexadecimal")
    roles: tuple[Role, ...] = Field(min_length=1)
    requests_per_minute: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1, description="requests at a time")


KEY_NAME = r"^[A-Za-z0-9._-]{1,64}$"
"""Names of keys."""


class KeysFile(_Strict):
    """The content of the file: key records by name. Logs call a key by its name."""

    keys: dict[Annotated[str, Field(pattern=KEY_NAME)], KeyRecord]

    @model_validator(mode="after")
    def _check_distinct(self) -> "KeysFile":
        if len({record.sha256 for record in self.keys.values()}) < len(self.keys):
            raise ValueError("a key of its own for every name")
        return self


def generate_key() -> str:
    """Create a key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: bytes) -> str:
    """Return the hash of a key, as the file contains it."""
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> Mapping[str, KeyRecord]:
    """Read the keys file. The log warns if others can read or write it.

    Returns:
        The key records by name.

    Raises:
        BadKeysFile: The file does not exist, cannot be read, or is not valid.
    """
    try:
        with open(path, "rb", opener=open_private) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise BadKeysFile(
            path, f"no such file; `infalign key NAME --role generate --keys {path}` makes one, with a key"
        ) from error
    except OSError as error:
        raise BadKeysFile(path, error.strerror) from error
    return _parse(path, content).keys


@contextmanager
def edit_keys(path: Path) -> Iterator[dict[str, KeyRecord]]:
    """Edit the keys file in a ``with`` block.

    The block gets the key records by name and changes them. They are written when the block ends. The file is replaced
    as a whole, readable by its owner only. Edits by several processes happen one after another. If the file does not
    exist, it is created.

    Args:
        path: The keys file.

    Yields:
        The key records by name.

    Raises:
        BadKeysFile: The file cannot be read or written, or is not valid.
    """
    path = path.resolve()  # a symbolic link is kept; its target is replaced
    try:
        with _lock(path.parent):
            keys = dict(read_keys(path)) if path.exists() else {}
            yield keys
            _replace(path, KeysFile(keys=keys).model_dump_json(indent=2, exclude_none=True) + "\n")
    except OSError as error:
        raise BadKeysFile(path, error.strerror) from error


def _parse(path: Path, content: bytes) -> KeysFile:
    try:
        return KeysFile.model_validate_json(content)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors()[0])
        if first["type"] == "json_invalid":
            raise BadKeysFile(path, f"not JSON ({first['ctx']['error']})") from None
        if not PUBLIC_FIELDS & set(first["loc"]):
            first["input"] = "…"
        # Without a cause, because pydantic's message shows the value.
        raise BadKeysFile(path, explain([first], KeysFile)) from None


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            if path.exists() and path.stat().st_uid != os.geteuid():
                os.fchown(descriptor, path.stat().st_uid, path.stat().st_gid)  # the server must still be able to read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
