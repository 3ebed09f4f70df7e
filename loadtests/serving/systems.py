"""What is compared: the servers of each system, and the worker that sends it best-of-n requests."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtests.serving.models import environment

WORKERS = Path(__file__).parent / "workers"
READY_SECONDS = 600
VARIABLE = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Server:
    """A command that serves, and the address at which it says that it is ready."""

    command: Sequence[str]
    ready: str
    environment: dict[str, str]
    directory: Path | None = None
    """That it is started in; Python finds modules there first."""


@dataclass(frozen=True)
class Turn:
    """What one load took."""

    requests: int
    seconds: float
    latencies: list[float]
    tokens: int
    cores: float
    """Processor seconds of all its processes per second."""
    pss: float
    """Proportional set size of all its processes at the end, in GB."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class System:
    """One system under test."""

    name: str
    note: str
    """What it does for one request."""
    worker: Sequence[str]
    servers: Sequence[Server] = ()
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    """The worker's."""


class Running:
    """A system whose processes run, suspended between its turns so that it disturbs nobody.

    Args:
        system: what is run.
        log: file that takes what its processes write.
        below: a running system whose servers this one uses too.

    Raises:
        RuntimeError: one of them does not start; with the end of its log.
    """

    def __init__(self, system: System, log: Path, below: "Running | None" = None) -> None:
        self.system, self._log, self._below = system, log, below
        self._processes: list[subprocess.Popen[Any]] = []
        started = time.perf_counter()
        if below:
            below.signal(signal.SIGCONT)
        with log.open("w") as written:
            for one in system.servers:
                self._processes.append(
                    subprocess.Popen(
                        one.command,
                        env=one.environment,
                        cwd=one.directory,
                        stdout=written,
                        stderr=written,
                        start_new_session=True,
                    )
                )
            for process, server in zip(self._processes, system.servers, strict=True):
                self._wait_until_ready(process, server)
            worker = subprocess.Popen(
                system.worker,
                env=system.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                text=True,
                start_new_session=True,
            )
        self._processes.append(worker)
        self._loads, self._answers = worker.stdin, worker.stdout
        if self._answer() != "ready":
            raise self._failure()
        self.start_seconds = time.perf_counter() - started
        self.signal(signal.SIGSTOP)

    def measure(self, load: dict[str, Any]) -> Turn:
        """Send a load. Raises RuntimeError if the worker fails at it."""
        self.signal(signal.SIGCONT)
        try:
            before = self._processor_seconds()
            print(json.dumps(load), file=self._loads, flush=True)
            answer = self._answer()
            if not answer:
                raise self._failure()
            took = json.loads(answer)
            cores = (self._processor_seconds() - before) / took["seconds"]
            pss = sum(process.memory_full_info().pss for process in self._tree()) / 1e9
        finally:
            self.signal(signal.SIGSTOP)
        return Turn(len(load["prompts"]), took["seconds"], took["latencies"], took["tokens"], cores, pss)

    def stop(self) -> None:
        """End all its own processes."""
        tree = self._own()
        for process in tree:
            process.kill()
        psutil.wait_procs(tree, 30)

    def _wait_until_ready(self, process: "subprocess.Popen[Any]", server: Server) -> None:
        until = time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < until:
            try:
                if httpx.get(server.ready, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise self._failure()

    def _answer(self) -> str:
        return str(self._answers.readline()).strip() if self._answers else ""

    def _failure(self) -> RuntimeError:
        self.stop()
        return RuntimeError(f"{self.system.name} failed; its log ends so:\n{self._log.read_text()[-3000:]}")

    def _tree(self) -> list[psutil.Process]:
        return self._own() + (self._below._own() if self._below else [])

    def _own(self) -> list[psutil.Process]:
        roots = [psutil.Process(process.pid) for process in self._processes if process.poll() is None]
        return [*roots, *(child for root in roots for child in root.children(recursive=True))]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for process in self._tree():
            process.send_signal(number)

    def _processor_seconds(self) -> float:
        times = [process.cpu_times() for process in self._tree()]
        return sum(one.user + one.system for one in times)


def engines_alone(bundle: Path, checkout: Path) -> System:
    """Our engines without a server."""
    return System(
        "engines alone",
        "N draws, N scores, no HTTP",
        [sys.executable, str(WORKERS / "engines.py"), str(bundle)],
        environment=environment(checkout),
    )


def our_server(bundle: Path, checkout: Path, port: int, name: str = "infalign", settings: str = "") -> System:
    """Our server, of the code in ``checkout``.

    ``settings`` has its options and variables of its environment, as in ``OMP_NUM_THREADS=1 --block-size 128``.
    """
    command = [sys.executable, "-m", "infalign", "serve", str(bundle), "--port", str(port), "--max-n", "256"]
    url, words = f"http://127.0.0.1:{port}", shlex.split(settings)
    variables = dict(word.split("=", 1) for word in words if VARIABLE.match(word))
    command += [word for word in words if not VARIABLE.match(word)]
    return System(
        name,
        "one call",
        [sys.executable, str(WORKERS / "infalign_client.py"), url],
        [Server(command, f"{url}/ready", environment(checkout) | variables, checkout)],
    )


def vllm_servers(models: Path, port: int, tuned: bool) -> list[Server]:
    """Two of vLLM's own servers, set up as well as ours, or as they come."""
    common = ["--dtype", "float32", "--max-model-len", "2048", "--gpu-memory-utilization", "0.05"]
    settings = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if tuned:
        common += ["--enforce-eager", "--max-num-seqs", "64", "--block-size", "32"]
        settings |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(os.cpu_count()),
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "2000",
        }
    servers = []
    for offset, (name, options) in enumerate({"policy": [], "reward": ["--runner", "pooling"]}.items()):
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models / name)]
        command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port + offset)]
        servers.append(Server([*command, *common, *options], f"http://127.0.0.1:{port + offset}/health", settings))
    return servers


def on_vllm(models: Path, port: int, tuned: bool) -> System:
    """A client of two vLLM servers."""
    name = "vllm serve, set up as ours" if tuned else "vllm serve as it comes"
    servers = vllm_servers(models, port, tuned)
    return System(name, "a call with n, one to /classify", _worker("vllm_client.py", port), servers)


def its_hub(port: int, python: str, name: str = "its_hub") -> System:
    """its_hub on the servers of :func:`on_vllm`."""
    return System(name, "N calls, one to /classify", _worker("its_hub_client.py", port, python))


def optillm(port: int, python: str, n: int) -> System:
    """Optillm's proxy on the policy's server of :func:`on_vllm`."""
    url = f"http://127.0.0.1:{port + 2}"
    program = str(Path(python).with_name("optillm"))
    command = [program, "--base-url", f"http://127.0.0.1:{port}/v1", "--port", str(port + 2), "--host", "127.0.0.1"]
    command += ["--approach", "bon", "--best-of-n", str(n), "--model", "policy"]
    return System(
        "optillm",
        f"a call with n, {n} in which the model rates itself",
        [sys.executable, str(WORKERS / "optillm_client.py"), url],
        [Server(command, f"{url}/health", os.environ | {"OPENAI_API_KEY": "none"})],
    )


def _worker(name: str, port: int, python: str = sys.executable) -> list[str]:
    return [python, str(WORKERS / name), *(f"http://127.0.0.1:{port + offset}" for offset in (0, 1))]
