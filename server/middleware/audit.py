"""The audit log: one line of JSON for each call that takes the role ``probe``, whatever its outcome.

It never contains the text of a prompt or response.
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
from server.decoding.jobs import DecodingResult
from server.errors import CLIENT_CLOSED_REQUEST, ServerError
from server.observability.lines import escape_delete

log = logging.getLogger("infalign.server")


@dataclass(frozen=True)
class ProbeCall:
    """A call for worst-of-n, or for candidates of the lower half.

    If the call was refused before its body was read, only the key and the procedure are known.
    """

    key: str
    """Name of the API key."""
    user: str | None
    """The end user that the request names, if it does."""
    model: str | None
    procedure: str
    n: int | None
    prompt_key: str | None
    """The hash that identifies the prompt in calibrations."""
    unfiltered: bool = False
    """Whether the call asks for candidates of the lower half that the procedure does not select."""


class Trail:
    """What the audit log will say of one request. It is ``scope["audit"]`` while the request is answered."""

    def __init__(self) -> None:
        self.start = datetime.now(UTC)
        self.call: ProbeCall | None = None
        self.failure: int | None = None
        self.lowest_quantile: float | None = None

    async def follow(self, work: Awaitable[DecodingResult]) -> DecodingResult:
        """Await ``work``, and note its failure or the lowest quantile of its candidates.

        The HTTP status alone would not tell how a stream failed, because it is sent before the work ends.
        """
        try:
            result = await work
        except Exception as error:
            self.failure = error.status if isinstance(error, ServerError) else ServerError.status
            raise
        self.lowest_quantile = min(candidate.quantile for candidate in result.candidates)
        return result


class AuditLog:
    """Writes the audit log. A file that was rotated away is opened again.

    Args:
        path: The file. None writes to ``console``.
        console: Where to write without a file. Defaults to stderr.

    Raises:
        InvalidValue: The file cannot be written.
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
        """Write the line of a request, if it takes the role ``probe``.

        Args:
            trail: What was noted of the request.
            status: The HTTP status of the answer.
            request_id: The id of the request.
        """
        if trail.call is None:
            return
        line = {
            "time": trail.start.isoformat(timespec="milliseconds"),
            "request_id": request_id,
            **asdict(trail.call),
            "status": trail.failure or status,
            "lowest_quantile": trail.lowest_quantile,
        }
        self._logger.info("%s", escape_delete(json.dumps(line)))

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # handleError has reported what a full disk did not take
            self._handler.close()


class _File(WatchedFileHandler):
    def _open(self) -> TextIOWrapper:
        """Open the file so that only its owner can read it, at the start and after a rotation."""
        return cast(TextIOWrapper, open(self.baseFilename, self.mode, encoding=self.encoding, opener=open_private))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Write a line that the file did not take to the server's log instead."""
        log.error("the audit log cannot be written (%s); its line: %s", sys.exc_info()[1], record.getMessage())


class AuditMiddleware:
    """ASGI middleware that writes a request's audit line when the request has ended.

    Args:
        app: The application that it wraps.
        audit_log: Where the line is written.
    """

    def __init__(self, app: ASGIApp, audit_log: AuditLog) -> None:
        self.app, self.audit_log = app, audit_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trail = scope["audit"] = Trail()
        status, complete = 0, False

        async def send_wrapper(message: Message) -> None:
            nonlocal status, complete
            status = message.get("status", status)
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self.app(scope, receive, send_wrapper)
        except Exception:
            trail.failure = trail.failure or ServerError.status
            raise
        finally:
            self.audit_log.write(trail, status if complete else CLIENT_CLOSED_REQUEST, scope.get("request_id"))
