"""Stages: what a run has already made is never made again.

Each stage leaves a directory named by its name and the hash of everything it was made from (its part of the config, its
own source, the directories it read, library versions), and is reused when that directory exists. A stage works
in a hidden sibling that is renamed when complete: a killed run is continued by the next one, and nothing half
made is ever read. A stage that resumes finds in that sibling what its killed predecessor left; any other begins anew.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from training import processes

LOCKS = ".locks"
LIBRARIES = ("infalign", "torch", "transformers", "trl")


@dataclass(frozen=True)
class StageReport:
    """One row of the summary."""

    name: str
    seconds: float
    reused: bool


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
        if not dry:
            (root / LOCKS).mkdir(parents=True, exist_ok=True)

    def run(
        self,
        name: str,
        build: Callable[[Path], Any],
        modules: tuple[Any, ...],
        *inputs: Any,
        resumes: bool = False,
        together: bool = False,
    ) -> Path:
        """The directory of stage ``name``, built by ``build`` unless it exists; ``inputs`` are JSON values or paths.

        With ``resumes``, ``build`` is given what a killed run left, made from the same inputs, and goes on from there.
        Of several processes of one run the first builds; with ``together`` all call ``build``, and the first renames.
        """
        sources = [hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest() for module in modules]
        made_from = [str(item.name) if isinstance(item, Path) else item for item in inputs]
        libraries = {library: version(library) for library in LIBRARIES}
        key = hashlib.sha256(json.dumps([sources, made_from, libraries], sort_keys=True).encode()).hexdigest()[:12]
        finished = self.root / f"{name}-{key}"
        started = time.monotonic()
        reused = finished.exists() if self.dry else not self._made(finished, build, resumes, together)
        self.reports.append(StageReport(name, time.monotonic() - started, reused))
        if name == self.until:
            raise Stopped(finished)
        return finished

    def _made(self, finished: Path, build: Callable[[Path], Any], resumes: bool, together: bool) -> bool:
        """Whether ``finished`` had to be made; it is there afterwards."""
        unfinished = finished.with_name(f".{finished.name}")
        if not processes.is_first():
            if missing := together and processes.agree():
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
                unfinished.rename(finished)
        return missing
