"""The service on Ray Serve.

Start it with ``serve run server.ray:app bundle=PATH max_n=32``, or with a config such as those in ``deploy/ray/``. A
replica is the same application that ``infalign serve`` runs. It has its own engines or, with ``policy_urls``, uses vLLM
servers that all replicas share. Replicas share no state, so Ray Serve can add and remove them with the load.
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
from server.app import ServedBundle, create_app
from server.assembly import assemble
from server.engines import Engines, EnginesDown
from server.settings import Settings

DEPLOYMENT = "infalign"
"""Name of the deployment. A Serve config refers to it, for example to set the number of replicas."""
POLL_SECONDS = 0.2
"""Seconds between two looks at engines that are starting."""
Assemble = Callable[[Bundle, Settings, bool], tuple[Engines, ServedBundle]]
"""Creates the engines and the served bundle from a bundle, the settings, and whether to serve the reference."""


class Arguments(Settings):
    """Arguments of the Serve application: every setting, and the arguments that ``infalign serve`` has beside them."""

    bundle: Path | None = Field(None, description="The bundle, at the same path on every node; the demo if left out.")
    reference: bool = Field(False, description="Serve the bundle's reference in the policy's place.")


class Replica:
    """One replica of the service.

    Args:
        arguments: The arguments of the application.
        assemble: Creates the engines and the served bundle.
    """

    def __init__(self, arguments: Arguments, assemble: Assemble = assemble) -> None:
        self._arguments, self._assemble = arguments, assemble
        self._engines: Engines | None = None
        self._failures: list[BaseException] = []
        self._is_up = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Create the application in the process where it runs."""
        arguments = self._arguments
        bundle = read_bundle(arguments.bundle or bundle_path("demo"))
        self._engines, served_bundle = self._assemble(bundle, arguments, arguments.reference)
        return create_app(arguments, self._engines, served_bundle, self._failures.append)

    async def check_health(self) -> None:
        """Wait for the engines at first. Later, raise if they have died.

        Ray Serve sends no requests before the first call returns. If a later call raises, Serve replaces the replica.
        That would not help if the engines run elsewhere, so then only the first call checks them.
        """
        while not self._is_up:
            self._raise_failure()
            try:
                await self._check()
            except EnginesDown:
                await asyncio.sleep(POLL_SECONDS)
            else:
                self._is_up = True
        if not self._arguments.policy_urls:
            self._raise_failure()
            await self._check()

    def _raise_failure(self) -> None:
        """Raise what made the supervisor give up, if it has."""
        if self._failures:
            raise self._failures[0]

    async def _check(self) -> None:
        if self._engines is None:
            raise EnginesDown("the engines are not up")
        await self._engines.check()


def app(arguments: Arguments) -> Any:
    """Build the application. This is the import path that ``serve run`` takes.

    Args:
        arguments: The arguments of the application.

    Raises:
        InvalidValue: The arguments contain a host or port. Serve's own config sets those.
    """
    return build_app(arguments)


def build_app(arguments: Arguments, assemble: Assemble = assemble) -> Any:
    """Build the application with another way to create engines, for tests.

    Args:
        arguments: The arguments of the application.
        assemble: Creates the engines and the served bundle.

    Raises:
        InvalidValue: The arguments contain a host or port. Serve's own config sets those.
    """
    from ray import serve

    for name in ("host", "port"):
        if name in arguments.model_fields_set:
            raise InvalidValue(name, getattr(arguments, name), "none here: http_options of Serve's own config say it")
    replicas = serve.deployment(serve.ingress()(Replica), name=DEPLOYMENT, max_ongoing_requests=arguments.max_sequences)
    return replicas.bind(arguments, assemble)
