"""The whole service on Ray Serve: ``serve run server.ray:app bundle=PATH max_n=32``, or a config (``deploy/ray/``).

A replica is the application as ``infalign serve`` runs it, with engines of its own or, with ``policy_urls``, on vLLM
servers that many replicas share. Replicas share no state, so that Serve may add and remove them as the load asks.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import Field

from infalign.bundle import Bundle, read_bundle
from infalign.errors import InvalidValue
from infalign.home import bundle_path
from server.app import Served, create_app
from server.assembly import assemble
from server.engines import Engines, EnginesDown
from server.settings import Settings

DEPLOYMENT = "infalign"
"""Name of the deployment, by which a config says how it scales."""
POLL_SECONDS = 0.2
Assemble = Callable[[Bundle, Settings, bool], tuple[Engines, Served]]


class Arguments(Settings):
    """What the application is built with: every setting, and what ``infalign serve`` takes beside them."""

    bundle: Path | None = Field(None, description="The bundle, at the same path on every node; the demo if left out.")
    reference: bool = Field(False, description="Serve the bundle's reference in the policy's place.")


class Replica:
    """One replica, as Serve runs it."""

    def __init__(self, arguments: Arguments, assemble: Assemble = assemble) -> None:
        self._arguments, self._assemble = arguments, assemble
        self._engines: Engines | None = None
        self._failures: list[BaseException] = []
        self._was_up = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, built where it runs."""
        asked = self._arguments
        bundle = read_bundle(asked.bundle or bundle_path("demo"))
        self._engines, served = self._assemble(bundle, asked, asked.reference)
        return create_app(asked, self._engines, served, self._failures.append)

    async def check_health(self) -> None:
        """At first, wait for the engines: no request is sent here before. Later, raise if they have died.

        Then Serve starts another replica, which would not help where the engines are elsewhere.
        """
        while not self._was_up:
            if self._failures:
                raise self._failures[0]
            try:
                await self._check()
            except EnginesDown:
                await asyncio.sleep(POLL_SECONDS)
            else:
                self._was_up = True
        if not self._arguments.policy_urls:
            await self._check()

    async def _check(self) -> None:
        if self._engines is None:
            raise EnginesDown("the engines are not up")
        await self._engines.check()


def app(arguments: Arguments) -> Any:
    """The application that Serve runs.

    Raises:
        InvalidValue: an address to bind, which is Serve's to say.
    """
    return application(arguments)


def application(arguments: Arguments, assemble: Assemble = assemble) -> Any:
    """The same, with other ways to assemble what a replica serves."""
    from ray import serve

    for name in ("host", "port"):
        if name in arguments.model_fields_set:
            raise InvalidValue(name, getattr(arguments, name), "none here: http_options of Serve's own config say it")
    replicas = serve.deployment(serve.ingress()(Replica), name=DEPLOYMENT, max_ongoing_requests=arguments.max_sequences)
    return replicas.bind(arguments, assemble)
