"""Loading and unloading adapters while the server runs, from other bundles on the same reference."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from infalign.bundle import Bundle, BundledPolicy, check_joinable, read_bundle
from infalign.errors import BundleError, shorten
from infalign.manifest import NAME
from server.catalogue import Catalogue
from server.concurrency import to_the_end
from server.drift import Drift
from server.engines import Engines, EnginesDown, Refused
from server.errors import BadRequest, Unavailable, UnknownModel


class Adapters:
    """The adapters that are served beside those of ``bundle``; others come from the bundles in ``folder``.

    Changes are made one after another, and each as a whole: however it fails, the engines hold what is served.
    """

    def __init__(
        self, bundle: Bundle, folder: Path | None, catalogue: Catalogue, engines: Engines, drift: Drift
    ) -> None:
        self.bundle, self.folder, self.catalogue, self.engines, self.drift = bundle, folder, catalogue, engines, drift
        self._changing = asyncio.Lock()

    async def load(self, name: str) -> list[str]:
        """Serve the adapters of the bundle of that name in the folder, all of them or none; their names.

        Raises:
            BadRequest: there is no folder or no such bundle, it cannot be used, it was not made on the same
                reference, reward model and calibration, a policy of it is served already, or the engine refuses it.
            Unavailable: the engines are not up.
        """
        if self.folder is None:
            raise BadRequest("bundle: this server was started without --bundles, a folder to load from", "bundle")
        if not re.fullmatch(NAME, name):
            raise BadRequest(f"bundle: got {shorten(name)}, accepted: the name of a folder in {self.folder}", "bundle")
        try:
            found = await asyncio.to_thread(read_bundle, self.folder / name)
            check_joinable(self.bundle, found)
        except BundleError as error:
            raise BadRequest(f"bundle: {error}", "bundle") from error
        async with self._changing:
            for known in found.policies:
                if known in self.catalogue.policies:
                    raise BadRequest(f"bundle: got {name!r}, whose policy {known} is served already", "bundle")
            await self._load(name, found.policies.values())
        return list(found.policies)

    async def unload(self, name: str) -> None:
        """Serve a policy no more: requests that name it are refused at once, those it is answering are finished first.

        Raises:
            UnknownModel: there is none of that name.
            BadRequest: it is the last one.
        """
        async with self._changing:
            if name not in self.catalogue.policies:
                known = ", ".join(self.catalogue.policies)
                raise UnknownModel(f"model: got {shorten(name)}, accepted: {known}", "model")
            if len(self.catalogue.policies) == 1:
                raise BadRequest(f"model: got {name!r}, accepted: any but the last one", "model")
            await to_the_end(self._unload(name))

    async def _load(self, bundle: str, policies: Iterable[BundledPolicy]) -> None:
        ready: list[BundledPolicy] = []

        async def load(policy: BundledPolicy) -> None:
            await self.engines.load(policy.name, policy.directory)
            ready.append(policy)

        try:
            for policy in policies:
                try:
                    await to_the_end(load(policy))
                except Refused as error:
                    raise BadRequest(f"bundle: {policy.name} of {bundle}: {error}", "bundle") from error
                except EnginesDown as error:
                    raise Unavailable("the engines cannot answer now") from error
        except BaseException:  # also where the request is cancelled
            await to_the_end(self._forget(ready))
            raise
        for policy in ready:
            self.catalogue.add(policy.name, policy.record.procedure)
            self.drift.add(policy.name, policy.record)

    async def _forget(self, policies: Iterable[BundledPolicy]) -> None:
        for policy in policies:
            await self.engines.unload(policy.name)

    async def _unload(self, name: str) -> None:
        await self.catalogue.remove(name)
        self.drift.remove(name)
        await self.engines.unload(name)
