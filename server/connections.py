"""Connections of clients: how many there may be, how long each may keep the server waiting."""

import asyncio
import json
import logging
import resource
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import HeadersTooLarge, Unreadable
from server.logs import log_refusal
from server.settings import Settings

log = logging.getLogger("infalign.connections")
BACKLOG = 512
"""Connections that the kernel holds until they are accepted, and that are accepted at a time."""
RESERVE = 128
"""File descriptors for everything but connections of clients."""
DESCRIPTORS = 65_536
"""The soft limit is raised to so many, as far as the hard limit allows."""
LINGER = 5.0
"""Seconds in which a client may read why it was refused while it still sends."""


class Connections:
    """The connections of one server.

    When there are as many as ``--max-connections`` or the limit of file descriptors allows, a new one takes the place
    of that which has waited longest without a complete request. Where every connection has one that is being answered,
    the new one is closed.
    """

    def __init__(self, settings: Settings) -> None:
        self.limit = _fit_descriptors(settings.max_connections)
        self.backlog = min(BACKLOG, self.limit)
        self.header_kib = settings.max_header_kib
        self.idle_timeout, self.deadline = settings.idle_timeout, settings.deadline
        self.count = 0
        self.waiting: dict[Connection, None] = {}
        """Those without a complete request, the longest wait first."""

    def protocol(self, **given: Any) -> "Connection":
        """What uvicorn calls for each connection that it accepts."""
        return Connection(self, **given)

    def add(self, connection: "Connection") -> None:
        """Count a new connection, and close one if there are too many."""
        self.count += 1
        if self.count <= self.limit:
            return
        log.warning("%d connections, the most there may be (--max-connections, ulimit -n): some are closed", self.limit)
        closed = next(iter(self.waiting), connection)
        self.waiting.pop(closed, None)
        closed.transport.abort()

    def remove(self, connection: "Connection") -> None:
        """Forget one that is closed."""
        self.count -= 1
        self.waiting.pop(connection, None)


class Connection(H11Protocol):
    """One connection, as uvicorn's own, with bounds.

    - A request's headers must be complete ``--idle-timeout`` seconds after the connection was made or the last request
      was answered; so must the rest of a body that was refused before all of it had come. (While a body is read,
      :class:`server.body.LimitBody` times it.)
    - Headers that grow beyond ``--max-header-kib`` are refused before they are complete.
    - A client that does not read what it is sent is cut off after ``--deadline`` seconds.
    """

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._connections = connections
        self._refused = False
        self._waiting: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connections.add(self)
        if not transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting = self._timer(self._waiting)
        self._stalled = self._timer(self._stalled)
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._answering:
            self._waiting = self._timer(self._waiting)
            if not self.cycle.more_body:
                self._connections.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering and not self._refused:  # else another request had been waiting for its turn
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request; uvicorn calls this while it handles h11's exception."""
        self._refused = True
        if self._answering:  # what is broken is the body of a request, which will have its line in the log
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        too_large = getattr(sys.exception(), "error_status_hint", None) == HeadersTooLarge.status
        error = HeadersTooLarge(self._connections.header_kib) if too_large else Unreadable()
        request_id, body = uuid4().hex, json.dumps(error.envelope).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if not self._answering:
            log_refusal(error.status, request_id)
        # Closed with data under way, the connection would be reset, and the client might never see the answer.
        self.transport.write_eof()
        self._waiting = self._timer(self._waiting, min(LINGER, self._connections.idle_timeout), self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._timer(self._stalled, self._connections.deadline, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = self._timer(self._stalled)

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade to HTTP/2 or a WebSocket is ignored, as HTTP allows; some clients ask for one every time."""

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """It is the client's turn to send a request."""
        self._connections.waiting.pop(self, None)
        self._connections.waiting[self] = None
        self._waiting = self._timer(self._waiting, self._connections.idle_timeout, self._close)

    def _close(self) -> None:
        """Close once what was sent has been read, or the client does not read it."""
        self.transport.close()
        self._waiting = self._timer(self._waiting, self._connections.deadline, self.transport.abort)

    def _timer(
        self, old: asyncio.TimerHandle | None, seconds: float = 0, call: Callable[[], None] | None = None
    ) -> asyncio.TimerHandle | None:
        """A timer in place of ``old``; none without ``call``."""
        if old is not None:
            old.cancel()
        return self.loop.call_later(seconds, call) if call else None


def _fit_descriptors(connections: int) -> int:
    """Raise the soft limit of file descriptors; so many ``connections`` as fit the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    raised = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft < raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    fitting = max(1, (soft - RESERVE) // 2)  # as many again may be accepted before one is closed
    if fitting < connections:
        log.warning("--max-connections %d: only %d fit the limit of %d file descriptors", connections, fitting, soft)
    return min(connections, fitting)
