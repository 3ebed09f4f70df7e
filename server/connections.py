"""Limits on client connections: how many are open, and how long each may keep the server waiting."""

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
from server.observability.logs import log_refusal
from server.settings import Settings

log = logging.getLogger("infalign.connections")
BACKLOG = 512
"""Connections that the kernel queues before the server accepts them."""
RESERVE = 128
"""File descriptors that are kept free for everything but client connections."""
MAX_DESCRIPTORS = 65_536
"""The soft limit of file descriptors is raised to this number, or to the hard limit if that is lower."""
LINGER = 5.0
"""Seconds that a client has to read a refusal while it still sends its request."""


class Connections:
    """All client connections of one server.

    Their number is limited by ``--max-connections`` and by the limit of file descriptors. When a new connection exceeds
    it, the connection that has been idle longest is closed. If every connection is answering a request, the new one is
    closed.

    Args:
        settings: The operator's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.limit = _fit_descriptors(settings.max_connections)
        self.backlog = min(BACKLOG, self.limit)
        self.header_kib = settings.max_header_kib
        self.idle_timeout, self.deadline = settings.idle_timeout, settings.deadline
        self.count = 0
        self.idle: dict[Connection, None] = {}
        """Connections that wait for a complete request. The one that has waited longest comes first."""

    def create_connection(self, **options: Any) -> "Connection":
        """Create the protocol for a connection. uvicorn calls this for each connection that it accepts."""
        return Connection(self, **options)

    def add(self, connection: "Connection") -> None:
        """Count a new connection. Close one if there are too many."""
        self.count += 1
        if self.count <= self.limit:
            return
        log.warning("%d connections, the most there may be (--max-connections, ulimit -n): some are closed", self.limit)
        victim = next(iter(self.idle), connection)
        self.idle.pop(victim, None)
        victim.transport.abort()

    def remove(self, connection: "Connection") -> None:
        """Forget a closed connection."""
        self.count -= 1
        self.idle.pop(connection, None)


class Connection(H11Protocol):
    """One client connection: uvicorn's protocol with time and size limits.

    - The headers of a request must be complete ``--idle-timeout`` seconds after the connection was opened or the last
      request was answered. The same holds for the rest of a body that was refused early.
      (:class:`server.middleware.body.BodyLimitMiddleware` limits the time of a body that is being read.)
    - Headers larger than ``--max-header-kib`` are refused before they are complete.
    - A client that does not read its answer is disconnected after ``--deadline`` seconds.

    Args:
        connections: All connections of the server.
        options: What uvicorn passes to its protocol class.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._has_refused = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connections.add(self)
        if not transport.is_closing():
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle_timer = self._reset_timer(self._idle_timer)
        self._stall_timer = self._reset_timer(self._stall_timer)
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._has_refused:
            return
        super().data_received(data)
        if self._is_answering:
            self._idle_timer = self._reset_timer(self._idle_timer)
            if not self.cycle.more_body:
                self._connections.idle.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering and not self._has_refused:  # otherwise a pipelined request is answered next
            self._await_request()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not a valid request. uvicorn calls this while it handles h11's exception."""
        self._has_refused = True
        if self._is_answering:  # the body is malformed; its request gets a line in the log anyway
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
        if not self._is_answering:
            log_refusal(error.status, request_id)
        # Closing now, while the client still sends, would reset the connection. The client might not see the answer.
        self.transport.write_eof()
        self._idle_timer = self._reset_timer(
            self._idle_timer, min(LINGER, self._connections.idle_timeout), self.transport.abort
        )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self._reset_timer(self._stall_timer, self._connections.deadline, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall_timer = self._reset_timer(self._stall_timer)

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore requests to upgrade to HTTP/2 or WebSocket, as HTTP allows. Some clients send one every time."""

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        """Start the idle timer: the client is to send a request."""
        self._connections.idle.pop(self, None)
        self._connections.idle[self] = None
        self._idle_timer = self._reset_timer(self._idle_timer, self._connections.idle_timeout, self._close)

    def _close(self) -> None:
        """Close once the client has read everything, or after the deadline."""
        self.transport.close()
        self._idle_timer = self._reset_timer(self._idle_timer, self._connections.deadline, self.transport.abort)

    def _reset_timer(
        self, old: asyncio.TimerHandle | None, seconds: float = 0, call: Callable[[], None] | None = None
    ) -> asyncio.TimerHandle | None:
        """Cancel the timer ``old``. Return a new one if there is a ``call``."""
        if old is not None:
            old.cancel()
        return self.loop.call_later(seconds, call) if call else None


def _fit_descriptors(connections: int) -> int:
    """Raise the soft limit of file descriptors. Return how many of ``connections`` fit the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    target = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    capacity = max(1, (soft - RESERVE) // 2)  # as many connections may be accepted before one is closed
    if capacity < connections:
        log.warning("--max-connections %d: only %d fit the limit of %d file descriptors", connections, capacity, soft)
    return min(connections, capacity)
