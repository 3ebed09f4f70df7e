"""What large requests cost others: the longest wait for /health and for a small request while they arrive, beside none.

    python -m benchmarks.large_requests [BUNDLE]      through vLLM (default: the demo)

Starts a server, and for each kind of large request sends eight at a time, twice. Meanwhile it asks for /health every
20 ms and for a small best-of-n again and again.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.overhead import QUESTION, free_port, serve_command, serving

AT_A_TIME, ROUNDS, IDLE_SECONDS = 8, 2, 3.0
MB = 1_000_000
SMALL = {"messages": [{"role": "user", "content": QUESTION}], "n": 2, "seed": 1, "max_tokens": 8}
Body = dict[str, Any]


def user(text: str, **fields: Any) -> Body:
    """A body with one message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def schema(value: Any) -> Body:
    """A response format of that schema."""
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


def nested(depth: int) -> Any:
    """Objects inside each other."""
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


KINDS: dict[str, tuple[str, Body]] = {
    "1 MB of words": ("/v1/best-of-n", user("word " * (MB // 5))),
    "1 MB of spaces": ("/v1/best-of-n", user(" " * MB)),
    "1 MB of control tokens": ("/v1/worst-of-n", user("<|end|>" * (MB // 7))),
    "30,000 messages": ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 30_000}),
    "64 rewards behind 900 kB": ("/v1/rewards", user("ab" * 450_000, responses=["x"] * 64)),
    "64 rewards of 6 kB each": ("/v1/rewards", user(QUESTION, responses=["my order is late " * 350] * 64)),
    "200,000 responses": ("/v1/rewards", user(QUESTION, responses=["x"] * 200_000)),
    "a schema 250 deep": ("/v1/best-of-n", user(QUESTION, n=4, response_format=schema(nested(250)))),
    "a schema 30 deep": ("/v1/best-of-n", user(QUESTION, n=64, response_format=schema(nested(30)))),
    "an enum of 50,000": ("/v1/best-of-n", user(QUESTION, response_format=schema({"enum": list(range(50_000))}))),
    "64 x 64 x 20 log-probabilities": (
        "/v1/best-of-n",
        user(QUESTION, n=64, max_tokens=64, logprobs=20, return_candidates=True),
    ),
}


async def longest(call: Callable[[], Awaitable[Any]], pause: float, ended: asyncio.Event) -> float:
    """Seconds of the longest call until ``ended``."""
    worst = 0.0
    while not ended.is_set():
        started = time.perf_counter()
        await call()
        worst = max(worst, time.perf_counter() - started)
        await asyncio.sleep(pause)
    return worst


async def beside(address: str, work: Callable[[httpx.AsyncClient], Awaitable[str]]) -> tuple[str, float, float]:
    """What ``work`` says, and the longest waits for /health and for a small request meanwhile."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        ended = asyncio.Event()
        waits = [
            asyncio.create_task(longest(lambda: client.get("/health"), 0.02, ended)),
            asyncio.create_task(longest(lambda: client.post("/v1/best-of-n", json=SMALL), 0.0, ended)),
        ]
        said = await work(client)
        ended.set()
        health, small = await asyncio.gather(*waits)
    return said, health, small


def burst(path: str, body: Body) -> Callable[[httpx.AsyncClient], Awaitable[str]]:
    """Sends a body eight at a time, and says with which statuses it was answered."""
    encoded = httpx.Request("POST", "http://none", json=body).content

    async def work(client: httpx.AsyncClient) -> str:
        statuses = []
        for _ in range(ROUNDS):
            sent = [
                client.post(path, content=encoded, headers={"content-type": "application/json"})
                for _ in range(AT_A_TIME)
            ]
            statuses += [answer.status_code for answer in await asyncio.gather(*sent)]
        return "/".join(map(str, sorted(set(statuses))))

    return work


async def idle(_: httpx.AsyncClient) -> str:
    """Nothing large."""
    await asyncio.sleep(IDLE_SECONDS)
    return ""


async def measure(address: str) -> None:
    """Print a line for each kind."""
    print(f"{'':32} {'status':>8} {'/health, most':>14} {'best-of-2, most':>16} {'/health, idle':>14}")
    await beside(address, idle)  # warm up
    for name, (path, body) in KINDS.items():
        _, before, _ = await beside(address, idle)
        said, health, small = await beside(address, burst(path, body))
        print(f"{name:32} {said:>8} {health:13.3f}s {small:15.3f}s {before:13.3f}s", flush=True)


@click.command()
@click.argument("bundle", required=False)
def main(bundle: str | None) -> None:
    """Print how long others wait while large requests arrive, eight at a time."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.jsonl"
        with serving(serve_command(bundle), free_port(), log) as address:
            asyncio.run(measure(address))


if __name__ == "__main__":
    main()
