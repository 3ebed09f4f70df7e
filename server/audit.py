"""The audit log: one line of JSON for each call that takes the role ``probe``, whatever became of it.

Never text of prompt or response.
"""

import json
import logging
import sys
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TextIO, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infalign.errors import InvalidValue
from server.access.files import open_private
from server.decoder import Decoded
from server.errors import CLIENT_CLOSED_REQUEST, ServerError
from server.lines import ascii_json

log = logging.getLogger("infalign.server")


@dataclass(frozen=True)
class Call:
    """A call for worst-of-n or for candidates of the lower half, as it was asked for.

    Of one that was refused before its body was read only the key and the procedure are known.
    """

    key: str
    """Name of the API key."""
    user: str | None
    """Whom the request says it is made for."""
    model: str | None
    procedure: str
    n: int | None
    prompt_key: str | None
    """The hash by which calibrations know the prompt."""
    unfiltered: bool = False
    """Whether it asks for candidates of the lower half, which the procedure does not select."""


class Trail:
    """What is noted of one request while it is answered."""

    def __init__(self) -> None:
        self.began = datetime.now(UTC)
        self.call: Call | None = None
        self.failure: int | None = None
        self.lowest_quantile: float | None = None

    async def follow(self, work: Awaitable[Decoded]) -> Decoded:
        """The result of ``work``; how it failed, or how low it went, is noted.

        A stream's status line has long been sent when its work fails, so the status alone would not tell.
        """
        try:
            decoded = await work
        except Exception as error:
            self.failure = error.status if isinstance(error, ServerError) else ServerError.status
            raise
        self.lowest_quantile = min(candidate.quantile for candidate in decoded.ranked)
        return decoded


class AuditLog:
    """The file, or ``console``, or stderr. A file that has been rotated away is opened anew.

    Raises:
        InvalidValue: the file cannot be written.
    """

    def __init__(self, path: Path | None, console: TextIO | None = None) -> None:
        # A logger of its own: no other handler gets its lines, and no level silences them.
        self._logger = logging.Logger("infalign.audit")
        if path is None:
            self._handler: logging.Handler = logging.StreamHandler(console or sys.stderr)
        else:
            try:
                self._handler = _File(path, encoding="utf-8")
            except OSError as error:
                raise InvalidValue("--audit-log", str(path), f"a file that can be written ({error.strerror})") from None
        self._logger.addHandler(self._handler)

    def write(self, trail: Trail, status: int, request_id: str | None) -> None:
        """One line, if the request was such a call."""
        if trail.call is None:
            return
        line = {
            "time": trail.began.isoformat(timespec="milliseconds"),
            "request_id": request_id,
            **asdict(trail.call),
            "status": trail.failure or status,
            "lowest_quantile": trail.lowest_quantile,
        }
        self._logger.info("%s", ascii_json(json.dumps(line)))

    def close(self) -> None:
        """No more lines."""
        with suppress(OSError):  # what a full disk did not take has been told of
            self._handler.close()


class _File(WatchedFileHandler):
    def _open(self) -> TextIOWrapper:
        """Its owner's alone where it is created, at the start or after it has been rotated away."""
        return cast(TextIOWrapper, open(self.baseFilename, self.mode, encoding=self.encoding, opener=open_private))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A line that could not be written goes to the server's log."""
        log.error("the audit log cannot be written (%s); its line: %s", sys.exc_info()[1], record.getMessage())


class Audit:
    """Writes the line when a request has ended. Plain ASGI."""

    def __init__(self, app: ASGIApp, audit_log: AuditLog) -> None:
        self.app, self.audit_log = app, audit_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trail = scope["audit"] = Trail()
        status, complete = 0, False

        async def watched(message: Message) -> None:
            nonlocal status, complete
            status = message.get("status", status)
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self.app(scope, receive, watched)
        except Exception:
            trail.failure = trail.failure or ServerError.status
            raise
        finally:
            self.audit_log.write(trail, status if complete else CLIENT_CLOSED_REQUEST, scope.get("request_id"))
