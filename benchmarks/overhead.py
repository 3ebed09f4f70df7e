"""What the server itself costs: the time of requests in which no engine works for them.

    python -m benchmarks.overhead [BUNDLE]      through vLLM (default: the demo)
    python -m benchmarks.overhead --fake        with engines in memory that only wait: the server alone

The benchmark starts a server that logs JSON, sends it eight requests at a time, and reads the exact ``overhead_ms`` of
each from the log.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import numpy as np

from infalign.errors import EngineFailed

READY = 900
"""Seconds that a server may take to start."""
QUESTION = "My order has not arrived. What can I do about it?"


@contextmanager
def run_server(command: list[str], port: int, log: Path) -> Iterator[str]:
    """Start a server with ``command``, yield its address once it is ready, and stop it afterwards."""
    settings = {"INFALIGN_PORT": str(port), "INFALIGN_LOG_FORMAT": "json"}
    with log.open("wb") as stream:
        server = subprocess.Popen(command, env=os.environ | settings, stderr=stream, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + READY
        while not _ready(address):
            if server.poll() is not None or time.monotonic() > until:
                raise EngineFailed(f"the server did not start; {log} has: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(120)


def free_port() -> int:
    """Find a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve_command(bundle: str | None) -> list[str]:
    """Return the command that serves a bundle, or the demo if None is given."""
    return [sys.executable, "-m", "infalign", "serve", *([bundle] if bundle else [])]


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def send_requests(address: str, requests: int, concurrency: int, n: int) -> float:
    """Send best-of-n requests, ``concurrency`` at a time, and return the seconds that it took."""
    numbers = iter(range(requests))
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:

        async def send_one_after_another() -> None:
            for number in numbers:
                content = f"{QUESTION} ({number})"
                body = {"messages": [{"role": "user", "content": content}], "n": n, "seed": number}
                (await client.post("/v1/best-of-n", json=body)).raise_for_status()

        start = time.perf_counter()
        await asyncio.gather(*(send_one_after_another() for _ in range(concurrency)))
        return time.perf_counter() - start


def read_overheads(log: Path) -> list[float]:
    """Read the milliseconds of overhead of each answered decoding request from a log."""
    values = []
    for line in log.read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            if entry.get("status") == 200 and "overhead_ms" in entry:
                values.append(float(entry["overhead_ms"]))
    return values


def run_fake_server(port: int) -> None:
    """Serve engines in memory that take 20 ms for a candidate and 5 ms for its score."""
    from server.engines import Completion, Delta, Sampling
    from server.process import run
    from server.settings import Settings
    from tests.fakes import FakeEngines, fake_served

    class Waiting(FakeEngines):
        async def generate(
            self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
        ) -> Completion:
            await asyncio.sleep(0.02)
            return await super().generate(prompt, sampling, listen)

        async def score(self, tokens: object) -> list[float]:
            await asyncio.sleep(0.005)
            return await super().score(tokens)  # type: ignore[arg-type]

    run(Settings(log_format="json", port=port), lambda: (Waiting(), fake_served()))


@click.command()
@click.argument("bundle", required=False)
@click.option("--fake", is_flag=True, help="Over engines in memory.")
@click.option("--fake-server", "serve_at", type=int, hidden=True)
@click.option("--requests", type=click.IntRange(min=100), default=400, show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("-n", type=click.IntRange(min=1), default=8, show_default=True)
def main(bundle: str | None, fake: bool, serve_at: int | None, requests: int, concurrency: int, n: int) -> None:
    """Print the median and the 99th percentile of the server's own overhead."""
    if serve_at:
        run_fake_server(serve_at)
        return
    port = free_port()
    alone = [sys.executable, "-m", "benchmarks.overhead", "--fake-server", str(port)]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.jsonl"
        with run_server(alone if fake else serve_command(bundle), port, log) as address:
            asyncio.run(send_requests(address, concurrency * 4, concurrency, n))  # warm up
            before = len(read_overheads(log))
            seconds = asyncio.run(send_requests(address, requests, concurrency, n))
        milliseconds = np.array(read_overheads(log)[before:])
    p50, p99 = np.percentile(milliseconds, [50, 99])
    print(
        f"{len(milliseconds)} requests best-of-{n}, {concurrency} at a time, "
        f"{len(milliseconds) / seconds:.1f} per second"
    )
    print(f"own overhead: p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {milliseconds.max():.2f} ms")


if __name__ == "__main__":
    main()
