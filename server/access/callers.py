"""Callers: the API keys of a running server and the roles they have."""

import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from server.access.keys import BadKeysFile, KeyRecord, Role, hash_key, read_keys
from server.errors import Forbidden, Unauthorized

log = logging.getLogger("infalign.server")
ACCEPTED = "accepted: `Authorization: Bearer KEY` with a key of this server"
"""What errors say about the header that is expected."""


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    name: str
    roles: frozenset[Role]
    requests_per_minute: int | None = None
    """The most requests in any minute; no limit if None."""
    concurrent: int | None = None
    """The most requests at a time; no limit if None."""

    def has_role(self, role: Role) -> bool:
        """Return whether the caller has ``role`` or the role ``admin``, which includes all others."""
        return bool(self.roles & {role, "admin"})

    def require(self, role: Role, action: str, param: str | None = None, alternative: str = "") -> None:
        """Check that the caller has a role.

        Args:
            role: The role.
            action: What the caller wants to do, for the error message.
            param: The request field that asks for it, if there is one.
            alternative: What the caller could do without the role, for the error message.

        Raises:
            Forbidden: The caller does not have the role.
        """
        if not self.has_role(role):
            roles = ", ".join(sorted(self.roles))
            where, other = f"{param}: " if param else "", f"; {alternative}" if alternative else ""
            raise Forbidden(f"{where}{action} takes a key with the role {role}, {self.name} has {roles}{other}", param)


ANONYMOUS = Caller("anonymous", frozenset(get_args(Role)))
"""The caller of every request if the server has no keys."""


class Keyring:
    """The keys of a keys file. Without a file, every caller is anonymous and has every role.

    Args:
        path: The keys file, or None.

    Raises:
        BadKeysFile: The file cannot be read or is not valid.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys: Mapping[str, KeyRecord] = {} if path is None else read_keys(path)
        if path is not None and not self._keys:
            log.warning("%s has no keys: nobody can call", path)

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return the caller that sent these headers.

        Args:
            headers: The headers of an ASGI request.

        Raises:
            Unauthorized: The headers have no key or one that is not in the file. The message does not repeat it.
        """
        if self._path is None:
            return ANONYMOUS
        digest = hash_key(_bearer(headers))
        caller = None
        for name, record in self._keys.items():  # no early exit: the time must not tell which key matches
            if hmac.compare_digest(record.sha256, digest):
                caller = Caller(name, frozenset(record.roles), record.requests_per_minute, record.concurrent)
        if caller is None:
            raise Unauthorized(f"Authorization: the key is not known, {ACCEPTED}", "Authorization")
        return caller

    def reload(self) -> None:
        """Read the keys file again. If it is not valid, the keys stay as they are."""
        if self._path is None:
            log.info("SIGHUP: there are no keys to read again (--keys)")
            return
        try:
            self._keys = read_keys(self._path)
        except BadKeysFile as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%s read again: %d keys", self._path, len(self._keys))


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise Unauthorized(f"Authorization: the header is missing, {ACCEPTED}", "Authorization")
    if len(values) > 1:
        raise Unauthorized(f"Authorization: came {len(values)} times, {ACCEPTED}", "Authorization")
    scheme, _, key = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise Unauthorized(f"Authorization: not a bearer key, {ACCEPTED}", "Authorization")
    return key.strip()
