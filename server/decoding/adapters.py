"""Loads and unloads adapters while the server runs. They come from other bundles with the same reference."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from infalign.bundle import Bundle, BundledPolicy, check_joinable, read_bundle
from infalign.errors import BundleError, shorten
from infalign.manifest import NAME
from server.concurrency import run_to_end
from server.decoding.catalogue import Catalogue
from server.decoding.drift import Drift
from server.decoding.judged import Judged
from server.engines import Engines, EnginesDown, Refused
from server.errors import BadRequest, Unavailable, UnknownModel


class Adapters:
    """Loads and unloads the adapters of further bundles.

    Changes happen one after another, and each completely or not at all. So the engines always hold exactly the adapters
    that the catalogue lists.

    Args:
        bundle: The bundle that the server was started with.
        folder: The folder of further bundles. None allows none.
        catalogue: The policies that are served.
        engines: The engines that load the adapters.
        drift: Watches the quantiles of each policy.
        judged: The records of judges.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path | None,
        catalogue: Catalogue,
        engines: Engines,
        drift: Drift,
        judged: Judged,
    ) -> None:
        self.bundle, self.folder, self.catalogue, self.engines = bundle, folder, catalogue, engines
        self.drift, self.judged = drift, judged
        self.policies: dict[str, BundledPolicy] = dict(bundle.policies)
        """The policies that are served, by their names."""
        self._lock = asyncio.Lock()

    async def load(self, name: str) -> list[str]:
        """Load all adapters of a bundle, or none.

        Args:
            name: Name of the bundle in the folder.

        Returns:
            Names of the policies.

        Raises:
            BadRequest: There is no folder or no such bundle, the bundle is not valid, its reference, reward model or
                calibration differ, one of its policies is served already, or the engine refuses an adapter.
            Unavailable: The engines are not up.
        """
        if self.folder is None:
            raise BadRequest("bundle: this server was started without --bundles, a folder to load from", "bundle")
        if not re.fullmatch(NAME, name):
            raise BadRequest(f"bundle: got {shorten(name)}, accepted: the name of a folder in {self.folder}", "bundle")
        try:
            addition = await asyncio.to_thread(read_bundle, self.folder / name)
            check_joinable(self.bundle, addition)
        except BundleError as error:
            raise BadRequest(f"bundle: {error}", "bundle") from error
        async with self._lock:
            for policy in addition.policies:
                if policy in self.catalogue.policies:
                    raise BadRequest(f"bundle: got {name!r}, whose policy {policy} is served already", "bundle")
            await self._load(name, addition.policies.values())
        return list(addition.policies)

    async def unload(self, name: str) -> None:
        """Stop serving a policy. New requests for it are refused at once; running ones are finished first.

        Args:
            name: Name of the policy.

        Raises:
            UnknownModel: There is no such policy.
            BadRequest: It is the only policy.
        """
        async with self._lock:
            if name not in self.catalogue.policies:
                names = ", ".join(self.catalogue.policies)
                raise UnknownModel(f"model: got {shorten(name)}, accepted: {names}", "model")
            if len(self.catalogue.policies) == 1:
                raise BadRequest(f"model: got {name!r}, accepted: any but the last one", "model")
            await run_to_end(self._unload(name))

    async def _load(self, bundle: str, policies: Iterable[BundledPolicy]) -> None:
        ready: list[BundledPolicy] = []

        async def load(policy: BundledPolicy) -> None:
            await self.engines.load(policy.name, policy.directory)
            ready.append(policy)

        try:
            for policy in policies:
                try:
                    await run_to_end(load(policy))
                except Refused as error:
                    raise BadRequest(f"bundle: {policy.name} of {bundle}: {error}", "bundle") from error
                except EnginesDown as error:
                    raise Unavailable("the engines cannot answer now") from error
        except BaseException:  # also if the request is cancelled
            await run_to_end(self._forget(ready))
            raise
        for policy in ready:
            self.catalogue.add(policy.name, policy.record.procedure)
            self.drift.add(policy.name, policy.record)
            self.judged.add(policy.name, policy.record)
            self.policies[policy.name] = policy

    async def _forget(self, policies: Iterable[BundledPolicy]) -> None:
        for policy in policies:
            await self.engines.unload(policy.name)

    async def _unload(self, name: str) -> None:
        await self.catalogue.remove(name)
        self.drift.remove(name)
        self.judged.remove(name)
        self.policies.pop(name, None)
        await self.engines.unload(name)
