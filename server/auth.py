"""Who calls: API keys, the roles they have, and what a route asks of them."""

import hmac
import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.refusals import BODIES, describe_call, read_body
from server.errors import Forbidden, Overloaded, Unauthorized
from server.keys import BadKeysFile, KeyRecord, Role, hash_key, read_keys
from server.limits import Limits
from server.metrics import Metrics

log = logging.getLogger("infalign.server")
GUARDED = "/v1"
ACCEPTED = "accepted: `Authorization: Bearer KEY` with a key of this server"


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    name: str
    roles: frozenset[Role]
    requests_per_minute: int | None = None
    concurrent: int | None = None

    def may(self, role: Role) -> bool:
        """Whether the caller has ``role``, or admin, which implies the others."""
        return bool(self.roles & {role, "admin"})

    def require(self, role: Role, action: str, param: str | None = None, instead: str = "") -> None:
        """Raise Forbidden for ``action`` unless the caller has ``role``; ``instead`` says what takes no role."""
        if not self.may(role):
            has = ", ".join(sorted(self.roles))
            where, other = f"{param}: " if param else "", f"; {instead}" if instead else ""
            raise Forbidden(f"{where}{action} takes a key with the role {role}, {self.name} has {has}{other}", param)


ANONYMOUS = Caller("anonymous", frozenset(get_args(Role)))


class Keyring:
    """The keys of a file. Without a file everyone is anonymous and has every role.

    Raises:
        BadKeysFile: the file cannot be read, or is not accepted.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys: Mapping[str, KeyRecord] = {} if path is None else read_keys(path)
        if path is not None and not self._keys:
            log.warning("%s has no keys: nobody can call", path)

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Who sent a request with these headers.

        Raises:
            Unauthorized: there is no key among them, or none that is known. What came is not repeated.
        """
        if self._path is None:
            return ANONYMOUS
        presented = hash_key(_bearer(headers))
        found = None
        for name, record in self._keys.items():  # all of them, so that the time says nothing of which
            if hmac.compare_digest(record.sha256, presented):
                found = Caller(name, frozenset(record.roles), record.requests_per_minute, record.concurrent)
        if found is None:
            raise Unauthorized(f"Authorization: the key is not known, {ACCEPTED}", "Authorization")
        return found

    def reread(self) -> None:
        """Take up what the file has become; the keys stay as they are where it is not accepted."""
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
    given = [value for name, value in headers if name == b"authorization"]
    if not given:
        raise Unauthorized(f"Authorization: the header is missing, {ACCEPTED}", "Authorization")
    if len(given) > 1:
        raise Unauthorized(f"Authorization: came {len(given)} times, {ACCEPTED}", "Authorization")
    scheme, _, key = given[0].partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise Unauthorized(f"Authorization: not a bearer key, {ACCEPTED}", "Authorization")
    return key.strip()


class Authenticate:
    """Lets in who has a key, and no more at a time than the key may. Plain ASGI: it decides before a body is read.

    Everything under /v1 is guarded, whatever routes there are; the rest is open. Where a key is at its limits the body
    of a decoding request is read, since only the body says whether the refusal belongs into the audit log.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, limits: Limits, metrics: Metrics) -> None:
        self.app, self.keyring, self.limits, self.metrics = app, keyring, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _guarded(scope["path"]):
            await self.app(scope, receive, send)
            return
        async with AsyncExitStack() as held:
            try:
                caller = scope["caller"] = self.keyring.caller(scope["headers"])
                place = self.limits.place(caller.name, caller.requests_per_minute, caller.concurrent)
                await held.enter_async_context(place)
            except Unauthorized as error:
                self.metrics.rejected.labels("unauthorized").inc()
                await error.response(scope, receive, send)
            except Overloaded as error:
                if scope["path"] in BODIES:
                    serving = scope["app"].state.serving
                    body = await read_body(receive, serving.settings.max_body_kib << 10)
                    scope["audit"].call = describe_call(scope, serving.catalogue, body)
                await error.response(scope, receive, send)
            else:
                await self.app(scope, receive, send)


def _guarded(path: str) -> bool:
    return path == GUARDED or path.startswith(GUARDED + "/")


BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="A key that `infalign key` made.")


def caller_of(request: Request) -> Caller:
    """Who sent a request.

    Raises:
        Unauthorized: nobody has authenticated the request, as where a route is not under /v1.
    """
    caller: Caller | None = request.scope.get("caller")
    if caller is None:
        raise Unauthorized(f"Authorization: {request.url.path} was not authenticated", "Authorization")
    return caller


# Dependencies are coroutines: FastAPI hands others to a thread, which costs more than they do.
async def authenticated(request: Request, _: Annotated[Any, Depends(BEARER)] = None) -> Caller:
    """The dependency through which routes get the caller, and the schema its security scheme.

    Raises:
        Unauthorized: as :func:`caller_of`.
    """
    return caller_of(request)


Authenticated = Annotated[Caller, Depends(authenticated)]


def needs(role: Role) -> Any:
    """The dependency of a route that takes ``role``, or admin."""

    async def check(request: Request, caller: Authenticated) -> None:
        if request.scope["path"] in BODIES and not caller.may(role):
            catalogue = request.app.state.serving.catalogue
            request.scope["audit"].call = describe_call(request.scope, catalogue, await request.body())
        caller.require(role, request.url.path)

    return Depends(check)
