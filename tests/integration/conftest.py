"""The real thing: the demo bundle from our own pipeline, served by `infalign serve` through vLLM."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from filelock import FileLock

from infalign import Bundle, read_bundle
from tests.training_runs import INFALIGN, command, environment

READY_WITHIN = 300  # a bound against hanging, not a claim of speed
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
ON_CPU = (
    *("--dtype", "float32", "--max-num-seqs", "64", "--max-num-batched-tokens", "4096"),
    *("--gpu-memory-utilization", "0.05", "--kv-cache-memory-bytes", str(256 << 20)),
    *("--distributed-executor-backend", "uni", "--enforce-eager", "--no-enable-chunked-prefill"),
)
"""What the server gives its own engines (server/engines/vllm.py)."""


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a directory once for all processes of a test run, by its name and a function that fills it."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        done = shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                (shared / name).mkdir()
                fill(shared / name)
                done.touch()
        return shared / name

    return make


@pytest.fixture(scope="session")
def bundle(once: Callable[[str, Callable[[Path], None]], Path]) -> Bundle:
    """The demo bundle; stages that the present code has already run are reused."""

    def train(directory: Path) -> None:
        done = subprocess.run([INFALIGN, "train", "demo"], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0
        (directory / "path").write_text(done.stdout.strip())

    return read_bundle(Path((once("demo", train) / "path").read_text()))


@pytest.fixture(scope="session")
def tiny_home(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The home of a tiny run that nothing disturbed. Tests share it: those that add to it take a copy."""

    def train(home: Path) -> None:
        done = subprocess.run(command(home / "bundle"), env=environment(home), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return once("tiny", train)


def children(pid: int, mark: str) -> list[psutil.Process]:
    """Child processes whose command line contains a text. One that ends while it is looked at is left out."""
    marked = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if mark in " ".join(child.cmdline()):
                marked.append(child)
    return marked


@dataclass(frozen=True)
class Running:
    """An `infalign serve` that is ready."""

    url: str
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def engines(self) -> list[psutil.Process]:
        """VLLM's processes."""
        return children(self.pid, "EngineCore")

    @property
    def ready(self) -> bool:
        return httpx.get(f"{self.url}/ready").status_code == 200

    def metric(self, name: str) -> float:
        """Sum over labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def wait_until(true: Callable[[], bool], seconds: float = READY_WITHIN) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, true
        time.sleep(0.1)


@contextmanager
def launched(log: Path, *arguments: str) -> Iterator[Running]:
    """`infalign serve` on a free port, once it is ready; stopped at the end."""
    with log.open("w") as stderr:
        process = subprocess.Popen([INFALIGN, "serve", *arguments, "--port", "0"], stderr=stderr)
        try:
            yield Running(wait_until_ready(process, log), process)
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[str]:
    """URL of the same."""
    with launched(log, *arguments) as running:
        yield running.url


@contextmanager
def vllm(log: Path, model: Path, *more: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A vLLM server of ``model``, which need not be ready yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *ON_CPU, *more]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | ENVIRONMENT,
            stdout=output,
            stderr=output,
        )
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(60)


def wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """URL of the server, once it is ready."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"on (http://\S+)", log.read_text()):
            try:
                if httpx.get(found[1] + "/ready").status_code == 200:
                    return found[1]
            except httpx.TransportError:
                pass
        time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{log.read_text()}")


def reproduction_in(log: Path) -> tuple[str, float]:
    """Level of the line that says how exactly a server gives the bundle's rewards, and the largest difference."""
    [(level, difference)] = re.findall(
        r" (\w+) infalign\.server: .*rewards here: largest difference ([\d.e-]+)", log.read_text()
    )
    return level, float(difference)


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server below keeps its log and its calibrations."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def server(bundle: Bundle, server_home: Path) -> Iterator[str]:
    """URL of a server of the demo bundle. One process runs all files that use it: SERVED in tests/conftest.py."""
    store = str(server_home / "calibrations.sqlite")
    with serving(server_home / "log", str(bundle.path), "--calibration-store", store) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data that is not part of the project; tests that use it are skipped without it."""
    path = Path(os.environ.get("INFALIGN_SHARED", Path(__file__).parents[3] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path
