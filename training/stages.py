"""Stages: what a run has already made is never made again.

Each stage leaves a directory named by its name and the hash of everything it was made from, and is reused when that
directory exists. A stage works in a hidden sibling that is renamed when complete: a killed run is continued by the
next one, and nothing half made is ever read. A stage that resumes finds in that sibling what its killed predecessor
left; any other begins anew.

What a stage is made from is not listed anywhere, it is derived:

- Its code: the function that builds it, named ``module:function``, with all that :mod:`training.sources` says it
  depends on. A stage is therefore built by a named function that is given everything else as an argument.
- Its arguments, by :mod:`training.identity`: values, the directories of earlier stages by their names, which stand for
  all that went before, and other files by their contents. Fields of a config that only decide how it is computed
  (``compute.sequences``, ``rollouts.ray``) do not count.
- The versions of the libraries that its code uses.

The environment does not count: threads, the number of processes and the kind of processor change a result by float
error, and which responses are drawn, not what they are a sample of.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import packages_distributions, version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from filelock import FileLock

from training import processes
from training.identity import Identities
from training.sources import Sources

LOCKS = ".locks"
METRICS = "metrics.jsonl"
ALTERNATIVES = ("ray", "vllm")
"""Libraries that code can use but need not: each counts where the stage says that it is used."""
INDIRECT = {"transformers": ("accelerate", "safetensors", "tokenizers")}
"""Libraries that do the work of others."""


@dataclass(frozen=True)
class StageReport:
    """One row of the summary."""

    name: str
    seconds: float
    reused: bool
    directory: Path


class Stopped(Exception):
    """The stage that a run was to stop after is done; ``directory`` is where."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.directory = directory


class Stages:
    """Runs stages below one root and remembers what each took; ``dry`` only says what it would do.

    ``until`` names the stage after which :class:`Stopped` is raised.

    Processes may share a root: a stage that two of them need is built by one, while the other waits for it.
    """

    def __init__(self, root: Path, dry: bool = False, until: str | None = None) -> None:
        self.root, self.dry, self.until = root, dry, until
        self.reports: list[StageReport] = []
        self.sources, self.identities = Sources(), Identities(root)
        if not dry:
            (root / LOCKS).mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        build: str,
        *arguments: Any,
        libraries: Sequence[str] = (),
        resumes: bool = False,
        together: bool = False,
    ) -> Path:
        """The directory of stage ``name``, built by ``build`` unless it exists.

        ``build`` is ``module:function``, imported when it is called: with a directory that exists, and ``arguments``.
        With ``resumes``, it is given what a killed run left, made from the same arguments, and goes on from there.
        Of several processes of one run the first builds; with ``together`` all call it, and the first renames.
        ``libraries`` are the alternatives that are used (:data:`ALTERNATIVES`).
        """
        finished = self.root / f"{name}-{self.key(build, arguments, libraries)}"
        started = time.monotonic()

        def make(directory: Path) -> None:
            resolve_name(build)(directory, *arguments)

        reused = finished.exists() if self.dry else not self._made(finished, make, resumes, together)
        self.reports.append(StageReport(name, time.monotonic() - started, reused, finished))
        if name == self.until:
            raise Stopped(finished)
        return finished

    def ahead(self) -> "Stages":
        """The same, to be gone through dry."""
        found = copy(self)
        found.dry, found.reports = True, []
        return found

    def key(self, build: str, arguments: Sequence[Any], libraries: Sequence[str] = ()) -> str:
        """The hash of what a stage is made from."""
        code = self.sources.code(build)
        used = (code.libraries - set(ALTERNATIVES)) | set(libraries)
        used.update(*(INDIRECT.get(library, ()) for library in used))
        versions = {library: self._versions(library) for library in sorted(used)}
        made_from = [
            build,
            code.definitions,
            code.files,
            sorted(code.external),
            self.identities.of(arguments),
            versions,
        ]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def _versions(self) -> Callable[[str], list[str]]:
        distributions = packages_distributions()
        return cache(lambda library: sorted({version(found) for found in distributions.get(library, ())}))

    def _made(self, finished: Path, build: Callable[[Path], Any], resumes: bool, together: bool) -> bool:
        """Whether ``finished`` had to be made; it is there afterwards."""
        unfinished = finished.with_name(f".{finished.name}")
        if not processes.is_first():
            if missing := together and processes.agree(False):
                build(unfinished)
            processes.wait_for(finished)
            return missing
        with FileLock(self.root / LOCKS / finished.name):
            missing = not finished.exists()
            if missing and not resumes:
                shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run
            if missing:
                unfinished.mkdir(exist_ok=resumes)
            if together:
                processes.agree(missing)
            if missing:
                build(unfinished)
                _draw(unfinished / METRICS)
                unfinished.rename(finished)
        return missing


def _draw(metrics: Path) -> None:
    """A picture of the metrics, if there are any: a view of a stage's work, so that no stage depends on its code."""
    if metrics.is_file():
        from training.curves import draw_curves

        draw_curves(metrics)
