"""Servers that stand in for each other: which is asked next, which is set aside, and when it comes back."""

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
from server.engines.wire import Card, Failed

log = logging.getLogger("infalign.server")
T = TypeVar("T")
ATTEMPTS = 2
"""Servers that one call is tried on."""
CONNECT_SECONDS = 5.0
"""How long connecting may take."""
SOONEST = 0.25
"""Seconds until a server that was set aside is examined again; doubled each time, up to the usual interval."""
FAULTS = (Failed, EnginesDown, NoAnswer, httpx.HTTPError)
"""What a call raises where another server may answer it."""


class Server:
    """A vLLM server: what it serves, what it owes, and why it is set aside if it is."""

    def __init__(self, url: str, silence: float, connections: int) -> None:
        self.url = url
        self.cards: list[Card] = []
        """The models it serves."""
        self.fault: str | None = "not asked yet"
        """Why it is set aside."""
        self.doubted = asyncio.Event()
        """Set when a call has failed, until it has been examined."""
        self.examined = asyncio.Event()
        self.turn = 0
        self.watch = Watch(silence)
        patience = httpx.Timeout(silence, connect=min(CONNECT_SECONDS, silence), read=None, pool=None)
        # vLLM closes a connection that is idle for 5 s; one that is just being closed must not be used.
        calls = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=2)
        self.client = httpx.AsyncClient(base_url=url, timeout=patience, limits=calls)
        # Neither a full pool of connections nor one that has been idle for long must make a server look dead.
        self.probe = httpx.AsyncClient(base_url=url, timeout=patience, limits=httpx.Limits(max_keepalive_connections=0))

    @property
    def context(self) -> int:
        """Tokens that all its models can read."""
        return min(card.max_model_len for card in self.cards if card.max_model_len is not None)

    def doubt(self) -> None:
        """Have it examined."""
        self.examined.clear()
        self.doubted.set()

    def set_aside(self, fault: str) -> None:
        """Ask others from now on."""
        if fault != self.fault:
            log.warning("%s is set aside: %s", self.url, fault)
        self.fault = fault

    async def examination(self) -> None:
        """Wait until a doubt has been settled, or until it has been silent for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.watch.silence):
                await self.examined.wait()

    async def close(self) -> None:
        """Give up its connections."""
        await self.client.aclose()
        await self.probe.aclose()


class Pool:
    """The servers of one role.

    Args:
        role: what they are, for the operator.
        servers: any of which may be asked.
        trial: a smallest piece of their work, that a server which was set aside must do to come back.
        every: seconds between examinations.
    """

    def __init__(
        self, role: str, servers: Iterable[Server], trial: Callable[[Server], Awaitable[object]], every: float
    ) -> None:
        self.role, self.servers = role, tuple(servers)
        self._trial, self._every, self._turns = trial, every, count(1)

    @property
    def known(self) -> list[Server]:
        """Those that have said what they serve."""
        return [server for server in self.servers if server.cards]

    async def watch(self) -> None:
        """Examine the servers again and again, until it is cancelled."""
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
        """What a server answers, the least busy first; ``call`` is told what the model is called there.

        One that fails is set aside, and another asked once, unless the call is no longer ``repeatable``. One that says
        that it failed at this request alone must do its trial before it is believed.

        Raises:
            EnginesDown: none answers.
            Refused: a server does not accept the request.
            RequestFailed: a server that works failed at the request.
        """
        failed: dict[Server, str] = {}
        while len(failed) < ATTEMPTS and (server := await self._next(model_of, failed)):
            server.turn = next(self._turns)
            try:
                async with server.watch.call():
                    return await call(server, model_of(server) or "")
            except RequestFailed as error:
                server.doubt()
                await server.examination()
                if server.fault is None:
                    raise
                failed[server] = _said(error)
            except FAULTS as error:
                failed[server] = _said(error)
                server.set_aside(failed[server])
                server.doubt()
            if not repeatable():
                break
        raise EnginesDown(self._why(model_of, failed))

    def lack(self, model_of: Callable[[Server], str | None]) -> str | None:
        """Why no server can be asked, if none can."""
        return None if any(map(model_of, self._healthy())) else self._why(model_of, {})

    def _healthy(self) -> list[Server]:
        return [server for server in self.servers if server.fault is None]

    async def _next(self, model_of: Callable[[Server], str | None], failed: dict[Server, str]) -> Server | None:
        """The least busy server, the one that has waited longest of several; None if there is none."""

        def ready() -> list[Server]:
            return [server for server in self._healthy() if server not in failed and model_of(server)]

        found = ready()
        if not found:
            # One call may have failed by its own fault: its server comes back at once then.
            doubted = [server for server in self.servers if server.doubted.is_set() and server not in failed]
            for server in doubted:
                await server.examination()
            found = ready()
        return min(found, key=lambda server: (server.watch.outstanding, server.turn), default=None)

    def _why(self, model_of: Callable[[Server], str | None], failed: dict[Server, str]) -> str:
        def why(server: Server) -> str:
            if fault := failed.get(server) or server.fault:
                return fault
            served = ", ".join(card.id for card in server.cards)
            return "busy with its examination" if model_of(server) else f"serves {served}, none of them it"

        return f"{self.role}: " + "; ".join(f"{server.url}: {why(server)}" for server in self.servers)

    async def _watch(self, server: Server) -> None:
        soonest = min(SOONEST, self._every)
        pause = soonest
        while True:
            doubted = server.doubted.is_set()
            await self._examine(server, doubted)
            if doubted:
                server.doubted.clear()
            if not server.doubted.is_set():
                server.examined.set()
            pause = soonest if doubted or server.fault is None else min(2 * pause, self._every)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every if server.fault is None else pause):
                    await server.doubted.wait()

    async def _examine(self, server: Server, doubted: bool) -> None:
        """Set the server aside, or take it back once it has done a trial."""
        began, fault = asyncio.get_running_loop().time(), server.fault
        try:
            async with asyncio.timeout(server.watch.silence):
                await wire.health(server.probe)
                version = await wire.get(server.probe, "/version", wire.Version)
                cards = (await wire.get(server.probe, "/v1/models", wire.Cards)).data
            if all(card.max_model_len is None for card in cards):
                raise Failed("/v1/models without max_model_len")
            server.cards = cards
            if doubted or fault is not None:
                async with server.watch.call():
                    await self._trial(server)
        except TimeoutError:
            if server.watch.heard_at < began:  # else it is busy, not dead
                server.set_aside(f"does not say within {server.watch.silence:g} s that it is healthy")
        except Exception as error:  # whatever it is, it must not end the examinations
            server.set_aside(_said(error))
        else:
            if fault is not None:
                served = ", ".join(card.id for card in cards)
                log.info("%s: %s, vLLM %s, serves %s", server.url, self.role, version.version, served)
                server.fault = None


def _said(error: Exception) -> str:
    if isinstance(error, httpx.HTTPError):
        return f"{type(error).__name__} ({one_line(error)})" if str(error) else type(error).__name__
    return one_line(error, limit=300)
