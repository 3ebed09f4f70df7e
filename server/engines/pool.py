"""Pools of vLLM servers that can stand in for each other.

A server that fails is set aside, and other servers are asked. It is examined regularly, and comes back once it is
healthy.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from itertools import count
from typing import TypeVar

import httpx

from infalign.errors import one_line
from server.engines import wire
from server.engines.base import EnginesDown, RequestFailed
from server.engines.watch import NoAnswer, Watch
from server.engines.wire import BadAnswer
from server.engines.wire_models import Card, Cards, Version

log = logging.getLogger("infalign.server")
T = TypeVar("T")
ATTEMPTS = 2
"""The most servers that one call is tried on."""
CONNECT_SECONDS = 5.0
"""The longest time that connecting may take."""
FIRST_PAUSE = 0.25
"""Seconds until a server that was set aside is examined again. The pause doubles each time, up to the interval."""
FAULTS = (BadAnswer, EnginesDown, NoAnswer, httpx.HTTPError)
"""Errors of a call after which another server may answer it."""


class Server:
    """A vLLM server that is reached over HTTP.

    Args:
        url: Its address.
        silence: Seconds without any output after which a busy server counts as hung.
        connections: The most connections to it.
    """

    def __init__(self, url: str, silence: float, connections: int) -> None:
        self.url = url
        self.cards: list[Card] = []
        """The models it serves."""
        self.fault: str | None = "not asked yet"
        """Why the server is set aside; None if it is not."""
        self.in_doubt = asyncio.Event()
        """Set when a call has failed. Cleared when the server has been examined."""
        self.examination_end = asyncio.Event()
        """Set when the server has been examined and is not in doubt."""
        self.turn = 0
        """Number of the last call, counted over the whole pool. It tells which server has waited longest."""
        self.watch = Watch(silence)
        patience = httpx.Timeout(silence, connect=min(CONNECT_SECONDS, silence), read=None, pool=None)
        # vLLM closes connections that are idle for 5 s. Earlier expiry avoids using one that is just being closed.
        calls = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=2)
        self.client = httpx.AsyncClient(base_url=url, timeout=patience, limits=calls)
        # Examinations have connections of their own. A full or stale connection pool must not look like a fault.
        self.probe = httpx.AsyncClient(base_url=url, timeout=patience, limits=httpx.Limits(max_keepalive_connections=0))

    @property
    def context(self) -> int:
        """The smallest context window of its models, in tokens."""
        return min(card.max_model_len for card in self.cards if card.max_model_len is not None)

    def doubt(self) -> None:
        """Request an examination of the server."""
        self.examination_end.clear()
        self.in_doubt.set()

    def set_aside(self, fault: str) -> None:
        """Send no more calls to the server until it has been examined.

        Args:
            fault: Why.
        """
        if fault != self.fault:
            log.warning("%s is set aside: %s", self.url, fault)
        self.fault = fault

    async def await_examination(self) -> None:
        """Wait until the server has been examined, at most as long as it may be silent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.watch.silence):
                await self.examination_end.wait()

    async def close(self) -> None:
        """Close its connections."""
        await self.client.aclose()
        await self.probe.aclose()


class Pool:
    """The servers of one role, each of which may be asked.

    Args:
        role: What the servers are for, such as "policy". Errors name it.
        servers: The servers.
        trial: A small piece of the role's work. A server that was set aside must do it to come back.
        interval: Seconds between two examinations of a server.
    """

    def __init__(
        self, role: str, servers: Iterable[Server], trial: Callable[[Server], Awaitable[object]], interval: float
    ) -> None:
        self.role, self.servers = role, tuple(servers)
        self._trial, self._interval, self._turns = trial, interval, count(1)

    @property
    def responders(self) -> list[Server]:
        """Servers that have reported which models they serve."""
        return [server for server in self.servers if server.cards]

    async def watch(self) -> None:
        """Examine the servers regularly, until cancelled."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for server in self.servers:
                stack.push_async_callback(server.close)
                group.create_task(self._watch(server))

    async def ask(
        self,
        call: Callable[[Server, str], Awaitable[T]],
        model_of: Callable[[Server], str | None],
        repeatable: Callable[[], bool] = lambda: True,
    ) -> T:
        """Send a call to the least busy server, and to another one if it fails.

        A server that fails is set aside. A server that reports a failure of this request alone is believed only after
        it has passed its trial.

        Args:
            call: Sends the call. It gets the server and the model's name on that server.
            model_of: Returns the model's name on a server; None if the server does not have it.
            repeatable: Returns whether the call can still be sent to another server.

        Returns:
            The answer.

        Raises:
            EnginesDown: No server answers.
            Refused: A server does not accept the request.
            RequestFailed: A healthy server failed at the request.
        """
        failures: dict[Server, str] = {}
        while len(failures) < ATTEMPTS and (server := await self._choose(model_of, failures)):
            server.turn = next(self._turns)
            try:
                async with server.watch.call():
                    return await call(server, model_of(server) or "")
            except RequestFailed as error:
                server.doubt()
                await server.await_examination()
                if server.fault is None:
                    raise
                failures[server] = _describe(error)
            except FAULTS as error:
                failures[server] = _describe(error)
                server.set_aside(failures[server])
                server.doubt()
            if not repeatable():
                break
        raise EnginesDown(self._explain(model_of, failures))

    def outage(self, model_of: Callable[[Server], str | None]) -> str | None:
        """Explain why no server can be asked. Returns None if one can.

        Args:
            model_of: Returns the model's name on a server; None if the server does not have it.
        """
        return None if any(map(model_of, self._healthy())) else self._explain(model_of, {})

    def _healthy(self) -> list[Server]:
        return [server for server in self.servers if server.fault is None]

    async def _choose(self, model_of: Callable[[Server], str | None], failures: dict[Server, str]) -> Server | None:
        """The least busy server. Of several, the one that has waited longest; None if there is none."""

        def list_ready() -> list[Server]:
            return [server for server in self._healthy() if server not in failures and model_of(server)]

        servers = list_ready()
        if not servers:
            # Perhaps a call failed by its own fault. Then its server comes back as soon as it is examined.
            in_doubt = [server for server in self.servers if server.in_doubt.is_set() and server not in failures]
            for server in in_doubt:
                await server.await_examination()
            servers = list_ready()
        return min(servers, key=lambda server: (server.watch.outstanding, server.turn), default=None)

    def _explain(self, model_of: Callable[[Server], str | None], failures: dict[Server, str]) -> str:
        def why(server: Server) -> str:
            if fault := failures.get(server) or server.fault:
                return fault
            models = ", ".join(card.id for card in server.cards)
            return "busy with its examination" if model_of(server) else f"serves {models}, none of them it"

        return f"{self.role}: " + "; ".join(f"{server.url}: {why(server)}" for server in self.servers)

    async def _watch(self, server: Server) -> None:
        first_pause = min(FIRST_PAUSE, self._interval)
        pause = first_pause
        while True:
            in_doubt = server.in_doubt.is_set()
            await self._examine(server, in_doubt)
            if in_doubt:
                server.in_doubt.clear()
            if not server.in_doubt.is_set():
                server.examination_end.set()
            pause = first_pause if in_doubt or server.fault is None else min(2 * pause, self._interval)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval if server.fault is None else pause):
                    await server.in_doubt.wait()

    async def _examine(self, server: Server, in_doubt: bool) -> None:
        """Set the server aside, or take it back after a trial."""
        start, fault = asyncio.get_running_loop().time(), server.fault
        try:
            async with asyncio.timeout(server.watch.silence):
                await wire.check_health(server.probe)
                version = await wire.get(server.probe, "/version", Version)
                cards = (await wire.get(server.probe, "/v1/models", Cards)).data
            if all(card.max_model_len is None for card in cards):
                raise BadAnswer("/v1/models without max_model_len")
            server.cards = cards
            if in_doubt or fault is not None:
                async with server.watch.call():
                    await self._trial(server)
        except TimeoutError:
            if server.watch.last_output_at < start:  # otherwise the server is busy, not dead
                server.set_aside(f"does not say within {server.watch.silence:g} s that it is healthy")
        except Exception as error:  # no error may end the examinations
            server.set_aside(_describe(error))
        else:
            if fault is not None:
                models = ", ".join(card.id for card in cards)
                log.info("%s: %s, vLLM %s, serves %s", server.url, self.role, version.version, models)
                server.fault = None


def _describe(error: Exception) -> str:
    if isinstance(error, httpx.HTTPError):
        return f"{type(error).__name__} ({one_line(error)})" if str(error) else type(error).__name__
    return one_line(error, limit=300)
