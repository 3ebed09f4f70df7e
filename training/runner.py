"""Runs stages, and reuses the results of those that have already run.

A stage leaves a directory. Its name is the name of the stage and a hash of everything that the stage is made from. If
that directory exists, the stage is not run again. A stage works in a hidden directory beside it, which is renamed when
the stage is complete. So nobody reads half of a result, and a run that was killed can be continued. A stage that
resumes finds what its killed predecessor left in the hidden directory; any other stage starts with an empty one.

Nobody lists what a stage is made from; it is derived:

- Its code: the function that builds it, written ``module:function``, and all code that the function depends on by
  :mod:`training.sources`. A stage is therefore built by a named function that gets everything else as an input.
- Its inputs, as described by :mod:`training.identity`: values, the names of the directories of earlier stages, and the
  contents of other files. Fields of a config that only decide how a result is computed, such as
  ``compute.sequences``, do not count.
- The versions of the libraries that its code uses.

The environment does not count. The number of threads or processes and the kind of processor change results by rounding
errors. They may also change which responses are drawn, but not the distribution that these are drawn from.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import packages_distributions, version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from filelock import FileLock

from infalign.errors import TooLittleMemory, one_line
from infalign.imports import quick_imports
from training import processes
from training.config import Config
from training.countdown import Countdown
from training.identity import Identities
from training.interrupts import raise_interrupt
from training.sources import Sources
from training.stages import STAGES, Artifacts, Stage

LOCKS = ".locks"
"""Folder of the locks."""
METRICS = "metrics.jsonl"
"""File of a stage's metrics."""
OPTIONAL_LIBRARIES = ("ray", "vllm")
"""Libraries that code can use but need not. They count where the stage says that it uses them."""
INDIRECT = {"transformers": ("accelerate", "safetensors", "tokenizers")}
"""Libraries that do the work of others."""


@dataclass(frozen=True)
class StageReport:
    """What happened to one stage, a row of the summary."""

    name: str
    """Name of the stage."""
    seconds: float
    """Time that it took."""
    reused: bool
    """Whether it had run before."""
    directory: Path
    """Directory that it left, or would leave."""


class Stopped(Exception):
    """Ends a run after the stage that was asked for.

    Args:
        directory: Directory of that stage.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.directory = directory


class Runner:
    """Runs stages below one root directory.

    Several processes may share a root. If two of them need the same stage, one builds it and the other waits.

    Args:
        root: Directory of the run, which holds the directories of the stages.
        dry: Whether to report what would be done without doing it.
        until: Name of the stage after which :class:`Stopped` is raised, if any.
        stages: All stages of the run.
    """

    def __init__(
        self, root: Path, dry: bool = False, until: str | None = None, stages: Sequence[Stage] = STAGES
    ) -> None:
        self.root, self.dry, self.until, self.stages = root, dry, until, stages
        self.reports: list[StageReport] = []
        self.sources, self.identities, self.countdown = Sources(), Identities(root), Countdown(stages)
        if not dry:
            (root / LOCKS).mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage, config: Config, artifacts: Artifacts) -> Path:
        """Return the directory of a stage, and build it if it does not exist.

        If several processes train together, the first one builds the stage and the others wait. A parallel stage is
        built by all of them.

        Args:
            stage: The stage.
            config: Config of the run.
            artifacts: What earlier stages have made.

        Returns:
            The directory of the stage.

        Raises:
            Stopped: The run ends after this stage.
        """
        inputs, libraries = stage.inputs(config, artifacts), stage.libraries(config)
        directory = self.root / f"{stage.name}-{self.key(stage.build, inputs, libraries)}"
        start = time.monotonic()

        def build(work: Path) -> None:
            if processes.is_first():
                self.countdown.announce(stage)
            with quick_imports():
                make = resolve_name(stage.build)
            raise_interrupt()
            try:
                make(work, **inputs)
            except Exception as error:
                if not _is_lack_of_memory(error):
                    raise
                raise TooLittleMemory(
                    f"{stage.name}: memory ran out ({one_line(error)}); what helps: a smaller compute.sequences where "
                    "it trains, smaller models, or nothing else that takes memory meanwhile"
                ) from error
            raise_interrupt()

        parallel = stage.is_parallel(config)
        reused = directory.exists() if self.dry else not self._build(directory, build, stage.resumes, parallel)
        seconds = time.monotonic() - start
        if not reused:
            self.countdown.finish(stage, seconds)
        self.reports.append(StageReport(stage.name, seconds, reused, directory))
        if stage.name == self.until:
            raise Stopped(directory)
        return directory

    def dry_copy(self) -> "Runner":
        """Return a copy that reports what would be done and does nothing."""
        runner = copy(self)
        runner.dry, runner.reports = True, []
        return runner

    def key(self, build: str, inputs: Mapping[str, Any], libraries: Sequence[str] = ()) -> str:
        """Compute the hash of everything that a stage is made from.

        Args:
            build: The function that builds it, written ``module:function``.
            inputs: Arguments of the function, by name.
            libraries: Libraries of :data:`OPTIONAL_LIBRARIES` that the stage uses.

        Returns:
            Twelve hexadecimal digits.
        """
        code = self.sources.code(build)
        imports = (code.libraries - set(OPTIONAL_LIBRARIES)) | set(libraries)
        imports.update(*(INDIRECT.get(library, ()) for library in imports))
        versions = {library: self._versions(library) for library in sorted(imports)}
        made_from = [
            build,
            code.definitions,
            code.files,
            sorted(code.external),
            self.identities.encode(dict(inputs)),
            versions,
        ]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def _versions(self) -> Callable[[str], list[str]]:
        return cache(lambda library: sorted({version(name) for name in _distributions().get(library, ())}))

    def _build(self, directory: Path, build: Callable[[Path], Any], resumes: bool, parallel: bool) -> bool:
        """Build a stage unless it exists, and say whether it had to be built."""
        work = directory.with_name(f".{directory.name}")
        if not processes.is_first():
            if missing := parallel and processes.broadcast(False):
                build(work)
            processes.wait_for(directory)
            return missing
        with FileLock(self.root / LOCKS / directory.name):
            missing = not directory.exists()
            if missing and not resumes:
                shutil.rmtree(work, ignore_errors=True)  # of a killed run
            if missing:
                work.mkdir(exist_ok=resumes)
            if parallel:
                processes.broadcast(missing)
            if missing:
                build(work)
                _draw_metrics(work / METRICS)
                work.rename(directory)
        return missing


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Names of the installed packages that have each library. To find them takes half a second."""
    return packages_distributions()


def _is_lack_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory ran out. On a CPU, torch has no class of its own for it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _draw_metrics(metrics: Path) -> None:
    """Draw the metrics of a stage, if it has any. No stage depends on this code."""
    if metrics.is_file():
        from training.curves import draw_curves

        draw_curves(metrics)
