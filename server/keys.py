"""The file of API keys: who may call, and what for.

    {"keys": {"app": {"sha256": "...", "roles": ["generate"], "requests_per_minute": 60, "concurrent": 4}}}

It holds hashes only. A key is 256 random bits, so a plain SHA-256 is right: there is nothing to guess that a slow or
salted hash would protect.
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
"""``generate``: decode and score. ``probe``: worst-of-n and candidates of the lower half. ``admin``: everything."""
PREFIX = "sk-infalign-"
SHOWN = {"roles", "requests_per_minute", "concurrent"}
"""Fields whose values an error may show; a key put where its hash belongs must not reach a log."""


class BadKeysFile(InfAlignError):
    """A keys file that cannot be read or written, or is none."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"--keys {path}: {why}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeyRecord(_Strict):
    """One key."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key, hexadecimal")
    roles: tuple[Role, ...] = Field(min_length=1)
    requests_per_minute: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1, description="requests at a time")


NAME = r"^[A-Za-z0-9._-]{1,64}$"


class KeysFile(_Strict):
    """All of them, by the names that logs know them by."""

    keys: dict[Annotated[str, Field(pattern=NAME)], KeyRecord]

    @model_validator(mode="after")
    def _distinct(self) -> "KeysFile":
        if len({record.sha256 for record in self.keys.values()}) < len(self.keys):
            raise ValueError("a key of its own for every name")
        return self


def new_key() -> str:
    """256 random bits, written down."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: bytes) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> Mapping[str, KeyRecord]:
    """The keys by name; a file that others can read or write is warned of.

    Raises:
        BadKeysFile: there is none, or it is not accepted.
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
    """The keys by name, none where there is no file yet; what is changed in the block is written at its end.

    The file is replaced as a whole and is its owner's alone; of two edits at a time one waits.

    Raises:
        BadKeysFile: it cannot be read or written.
    """
    path = path.resolve()  # a link stays one
    try:
        with _locked(path.parent):
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
        if not SHOWN & set(first["loc"]):
            first["input"] = "…"
        # Without a cause: pydantic's own text shows the value.
        raise BadKeysFile(path, explain([first], KeysFile)) from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            if path.exists() and path.stat().st_uid != os.geteuid():
                os.fchown(descriptor, path.stat().st_uid, path.stat().st_gid)  # the server must still be able to read
        os.replace(staged, path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise
