"""Half an hour of mixed load on a server of the demo, and whether its memory stays where it was.

    python loadtests/soak.py --minutes 30

Starts a server, sends best-of-n, worst-of-n, streams, clients that leave, requests that are refused, calibrations and
rewards from eight users at a time, and reads resident memory from its metrics. After a warm-up of a fifth of the time
the largest and the smallest reading must be within 5% of each other. Traffic goes to 127.0.0.1 only.
"""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import click
import httpx

USERS, EVERY, ALLOWED = 8, 10.0, 0.05
PROBLEMS = ("laptop gets very hot", "printer is always offline", "bicycle has weak brakes", "fridge hums all night")
KINDS: tuple[tuple[str, dict[str, Any], float, set[int]], ...] = (
    ("best-of-n", {"n": 8}, 60, {200}),
    ("worst-of-n", {"n": 8, "return_candidates": True}, 60, {200}),
    ("chat/completions", {"best_of": 4, "stream": True}, 60, {200}),
    ("chat/completions", {"stream": True, "logprobs": True}, 60, {200}),
    ("best-of-n", {"n": 16, "min_tokens": 64, "max_tokens": 64}, 0.2, {0, 200}),  # leaves
    ("best-of-n", {"n": 2, "calibrate": True}, 120, {200}),
    ("rewards", {"responses": ["Turn it off and on again.", "I do not know."]}, 60, {200}),
    ("best-of-n", {"n": 0}, 60, {400}),
)
"""Endpoint, fields, seconds until the client leaves, and the statuses that are right (0: it has left)."""


async def user(client: httpx.AsyncClient, seed: int, until: float, counts: dict[int, int]) -> None:
    """Send one request after the other."""
    random = Random(seed)
    while time.monotonic() < until:
        endpoint, fields, patience, right = random.choice(KINDS)
        text = f"Request {random.randrange(10**6)}: my {random.choice(PROBLEMS)}. What should I do?"
        body = {"messages": [{"role": "user", "content": text}], **fields}
        try:
            answer = await client.post(f"/v1/{endpoint}", json=body, timeout=patience)
            status = answer.status_code
        except httpx.TimeoutException:
            status = 0
        if status not in right:
            raise SystemExit(f"{endpoint} {fields}: status {status}")
        counts[status] = counts.get(status, 0) + 1


async def resident(client: httpx.AsyncClient) -> float:
    """MiB of the server and its engines."""
    text = (await client.get("/metrics", timeout=60)).text
    found = re.search(r"^infalign_resident_memory_bytes (\S+)", text, re.MULTILINE)
    return float(found[1]) / 2**20 if found else float("nan")


async def soak(url: str, minutes: float) -> bool:
    """Whether memory was flat; prints what was seen."""
    started = time.monotonic()
    until = started + 60 * minutes
    counts: dict[int, int] = {}
    seen: list[float] = []
    async with httpx.AsyncClient(base_url=url) as client:
        load = asyncio.gather(*(user(client, seed, until, counts) for seed in range(USERS)))
        while not load.done() and time.monotonic() < until:
            await asyncio.sleep(EVERY)
            memory = await resident(client)
            if time.monotonic() - started > 12 * minutes:
                seen.append(memory)
            click.echo(
                f"{(time.monotonic() - started) / 60:6.1f} min {memory:8.0f} MiB {sum(counts.values()):8d} requests"
            )
        await load
    spread = max(seen) / min(seen) - 1
    click.echo(f"statuses {dict(sorted(counts.items()))}; {min(seen):.0f} to {max(seen):.0f} MiB, {spread:.1%}")
    return spread <= ALLOWED


@click.command()
@click.option("--minutes", type=click.FloatRange(0.5, 120), default=30, show_default=True)
@click.option("--port", type=int, default=8765, show_default=True)
def main(minutes: float, port: int) -> None:
    """Serve the demo, load it, and say whether memory stayed within 5%."""
    url = f"http://127.0.0.1:{port}"
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        command = [sys.executable, "-m", "infalign", "serve", "--port", str(port)]
        command += ["--calibration-store", str(Path(folder) / "calibrations.sqlite")]
        server = subprocess.Popen(command, stderr=log)
        try:
            while True:
                try:
                    if httpx.get(f"{url}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if server.poll() is not None:
                    raise SystemExit((Path(folder) / "log").read_text())
                time.sleep(1)
            flat = asyncio.run(soak(url, minutes))
        finally:
            server.terminate()
            server.wait(60)
    raise SystemExit(0 if flat else "memory has grown")


if __name__ == "__main__":
    main()
