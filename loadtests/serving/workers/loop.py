"""What every worker does: it reads loads from stdin, sends each as so many clients, and writes what it took to stdout.

Standard library only, since workers of peers run in environments of their own.

A load is a line of JSON: {"clients": 8, "n": 16, "tokens": 64, "prompts": ["...", ...]}, one request for each prompt.
The answer is one too: {"seconds": ..., "latencies": [...], "tokens": ..., "note": ...}. "ready" comes first.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

Request = Callable[[str, int, int], Awaitable[int]]
"""Best of N for a prompt: takes the prompt, N and the tokens of each candidate; returns the tokens that were drawn."""


async def send(request: Request, load: dict[str, Any]) -> dict[str, Any]:
    """Send all requests of the load, each client one after the other."""
    left = iter(load["prompts"])
    latencies: list[float] = []
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        for prompt in left:
            started = time.perf_counter()
            drawn = await request(prompt, load["n"], load["tokens"])
            tokens += drawn
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(load["clients"])))
    return {"seconds": time.perf_counter() - started, "latencies": latencies, "tokens": tokens}


async def work(request: Request) -> None:
    """Answer loads until stdin ends."""
    # What libraries print must not come between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await send(request, json.loads(line))), file=answers, flush=True)
