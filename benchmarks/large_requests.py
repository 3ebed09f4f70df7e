"""What large requests cost other clients.

    python -m benchmarks.large_requests [BUNDLE]      through vLLM (default: the demo)

The benchmark starts a server and sends eight requests of each large kind at a time, twice. Meanwhile it asks for
/health every 20 ms and for a small best-of-n again and again. It prints the longest waits for both, and the longest
wait for /health without large requests.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.overhead import QUESTION, free_port, run_server, serve_command

AT_A_TIME, ROUNDS, IDLE_SECONDS = 8, 2, 3.0
MB = 1_000_000
SMALL = {"messages": [{"role": "user", "content": QUESTION}], "n": 2, "seed": 1, "max_tokens": 8}
Body = dict[str, Any]


def make_body(text: str, **fields: Any) -> Body:
    """Make the body of a request with one message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def make_response_format(value: Any) -> Body:
    """Make a response format that asks for a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


def make_nested_schema(depth: int) -> Any:
    """Make a JSON schema of objects inside each other."""
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


KINDS: dict[str, tuple[str, Body]] = {
    "1 MB of words": ("/v1/best-of-n", make_body("word " * (MB // 5))),
    "1 MB of spaces": ("/v1/best-of-n", make_body(" " * MB)),
    "1 MB of control tokens": ("/v1/worst-of-n", make_body("<|end|>" * (MB // 7))),
    "30,000 messages": ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 30_000}),
    "64 rewards behind 900 kB": ("/v1/rewards", make_body("ab" * 450_000, responses=["x"] * 64)),
    "64 rewards of 6 kB each": ("/v1/rewards", make_body(QUESTION, responses=["my order is late " * 350] * 64)),
    "200,000 responses": ("/v1/rewards", make_body(QUESTION, responses=["x"] * 200_000)),
    "a schema 250 deep": (
        "/v1/best-of-n",
        make_body(QUESTION, n=4, response_format=make_response_format(make_nested_schema(250))),
    ),
    "a schema 30 deep": (
        "/v1/best-of-n",
        make_body(QUESTION, n=64, response_format=make_response_format(make_nested_schema(30))),
    ),
    "an enum of 50,000": (
        "/v1/best-of-n",
        make_body(QUESTION, response_format=make_response_format({"enum": list(range(50_000))})),
    ),
    "64 x 64 x 20 log-probabilities": (
        "/v1/best-of-n",
        make_body(QUESTION, n=64, max_tokens=64, logprobs=20, return_candidates=True),
    ),
}


async def time_longest(call: Callable[[], Awaitable[Any]], pause: float, stop: asyncio.Event) -> float:
    """Make calls until ``stop`` is set, and return the seconds of the longest."""
    worst = 0.0
    while not stop.is_set():
        start = time.perf_counter()
        await call()
        worst = max(worst, time.perf_counter() - start)
        await asyncio.sleep(pause)
    return worst


async def measure_beside(address: str, work: Callable[[httpx.AsyncClient], Awaitable[str]]) -> tuple[str, float, float]:
    """Do some work, and return its result and the longest waits for /health and for a small request meanwhile."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        stop = asyncio.Event()
        waits = [
            asyncio.create_task(time_longest(lambda: client.get("/health"), 0.02, stop)),
            asyncio.create_task(time_longest(lambda: client.post("/v1/best-of-n", json=SMALL), 0.0, stop)),
        ]
        statuses = await work(client)
        stop.set()
        health, small = await asyncio.gather(*waits)
    return statuses, health, small


def make_burst(path: str, body: Body) -> Callable[[httpx.AsyncClient], Awaitable[str]]:
    """Make a function that sends a body eight at a time and returns the statuses of the answers."""
    content = httpx.Request("POST", "http://none", json=body).content

    async def work(client: httpx.AsyncClient) -> str:
        statuses = []
        for _ in range(ROUNDS):
            requests = [
                client.post(path, content=content, headers={"content-type": "application/json"})
                for _ in range(AT_A_TIME)
            ]
            statuses += [answer.status_code for answer in await asyncio.gather(*requests)]
        return "/".join(map(str, sorted(set(statuses))))

    return work


async def wait_idle(_: httpx.AsyncClient) -> str:
    """Send nothing large."""
    await asyncio.sleep(IDLE_SECONDS)
    return ""


async def measure(address: str) -> None:
    """Measure every kind and print a line for each."""
    print(f"{'':32} {'status':>8} {'/health, most':>14} {'best-of-2, most':>16} {'/health, idle':>14}")
    await measure_beside(address, wait_idle)  # warm up
    for name, (path, body) in KINDS.items():
        _, before, _ = await measure_beside(address, wait_idle)
        statuses, health, small = await measure_beside(address, make_burst(path, body))
        print(f"{name:32} {statuses:>8} {health:13.3f}s {small:15.3f}s {before:13.3f}s", flush=True)


@click.command()
@click.argument("bundle", required=False)
def main(bundle: str | None) -> None:
    """Print how long others wait while large requests arrive, eight at a time."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.jsonl"
        with run_server(serve_command(bundle), free_port(), log) as address:
            asyncio.run(measure(address))


if __name__ == "__main__":
    main()
