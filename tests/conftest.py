"""What all tests have in common."""

import gc
import signal
from typing import Any

import pytest

INTEGRATION = "tests/integration"
SERVED = tuple(
    f"{INTEGRATION}/test_{name}.py"
    for name in (
        "calibrations",
        "campaigns",
        "clients",
        "engine_refusals",
        "loadtest",
        "readme",
        "remote",
        "serving",
        "turns",
    )
)
"""Files that share one server. One process runs them all, so that it is started once."""
FIRST = (
    *SERVED,
    *(f"{INTEGRATION}/test_{name}.py" for name in ("training", "kinds", "models", "engine_faults", "faults")),
)
"""Files that take longest. They come first, so that two processes end together."""


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes of tests: a shell starts what it puts in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Keep the garbage collector to the objects of one file.

    A training collects garbage several times. Among the objects of all files and libraries, that takes a second.
    """
    gc.collect()  # what the file before has left
    gc.freeze()


def file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {file: place for place, file in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(file_of(item.nodeid), len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``, give all files of SERVED to the same process, and every other file to any."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "served" if file in SERVED else file

    return Scheduling(config, log)
