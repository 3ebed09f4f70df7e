"""Loading and unloading adapters while the server runs, from other bundles on the same reference."""

import asyncio
import re
from pathlib import Path

from infalign.bundle import Bundle, check_joinable, read_bundle
from infalign.errors import BundleError
from infalign.manifest import NAME
from infalign.validation import shorten
from server.catalogue import Catalogue
from server.engines import Engines, EnginesDown, Refused
from server.errors import BadRequest, Unavailable, UnknownModel


class Adapters:
    """The adapters that are served beside those of ``bundle``; others come from the bundles in ``folder``."""

    def __init__(self, bundle: Bundle, folder: Path | None, catalogue: Catalogue, engines: Engines) -> None:
        self.bundle, self.folder, self.catalogue, self.engines = bundle, folder, catalogue, engines
        self._changing = asyncio.Lock()

    async def load(self, name: str) -> list[str]:
        """Serve the adapters of the bundle of that name in the folder; their names.

        Raises:
            BadRequest: there is no folder or no such bundle, it cannot be used, it was not made on the same
                reference, reward model and calibration, a policy of it is served already, or the engine refuses it.
            Unavailable: the engines are not up.
        """
        if self.folder is None:
            raise BadRequest("bundle: this server was started without --bundles, a folder to load from", "bundle")
        if not re.fullmatch(NAME, name):
            raise BadRequest(f"bundle: got {name!r}, accepted: the name of a folder in {self.folder}", "bundle")
        try:
            found = await asyncio.to_thread(read_bundle, self.folder / name)
            check_joinable(self.bundle, found)
        except BundleError as error:
            raise BadRequest(f"bundle: {error}", "bundle") from error
        async with self._changing:
            for known in found.policies:
                if known in self.catalogue.policies:
                    raise BadRequest(f"bundle: got {name!r}, whose policy {known} is served already", "bundle")
            for policy in found.policies.values():
                try:
                    await self.engines.load(policy.name, policy.directory)
                except Refused as error:
                    raise BadRequest(f"bundle: {policy.name} of {name}: {error}", "bundle") from error
                except EnginesDown as error:
                    raise Unavailable("the engines cannot answer now") from error
                self.catalogue.add(policy.name, policy.record.procedure)
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
                raise UnknownModel(f"model: got {shorten(name)!r}, accepted: {known}", "model")
            if len(self.catalogue.policies) == 1:
                raise BadRequest(f"model: got {name!r}, accepted: any but the last one", "model")
            await self.catalogue.remove(name)
            await self.engines.unload(name)
