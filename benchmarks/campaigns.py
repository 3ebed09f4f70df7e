"""What a campaign adds to the load that a server can take: ``infalign probe`` beside plain clients.

Both ask a running server for the same samples: 8 requests at a time, each for the worst of 32. The clients only send
requests. ``infalign probe`` also starts, stores every sample and can be killed. They take turns.

    python benchmarks/campaigns.py prompts.jsonl --url http://127.0.0.1:8000

Prints samples a second of both, and their ratio, for each round.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import httpx

from workbench.prompts import Prompt, read_prompts
from workbench.sources import Sampling

N, CLIENTS = 32, 8


async def load(url: str, prompts: list[Prompt], samples: int, round_seed: int) -> None:
    """Ask for the samples as fast as the clients can."""
    sampling = Sampling("", "", round_seed)
    requests = iter([(prompt, start) for prompt in prompts for start in range(0, samples, N)])
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask() -> None:
            for prompt, start in requests:
                seed = sampling.seed_of(prompt) + start
                body = {"messages": prompt.messages, "n": N, "seed": seed, "return_candidates": True}
                (await client.post("/v1/worst-of-n", json=body)).raise_for_status()

        await asyncio.gather(*(ask() for _ in range(CLIENTS)))


def probe(url: str, path: Path, limit: int, samples: int, round_seed: int) -> None:
    """Run the campaign."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "infalign", "probe", str(path), "--url", url, "--limit", str(limit)]
        command += ["--n", str(samples), "--seed", str(round_seed), "--output", folder]
        subprocess.run(command, check=True, capture_output=True)


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--limit", default=64, show_default=True, help="Prompts.")
@click.option("--samples", default=128, show_default=True, help="Samples of each prompt.")
@click.option("--rounds", default=3, show_default=True)
def main(path: Path, url: str, limit: int, samples: int, rounds: int) -> None:
    """Time both, and print their ratio."""
    prompts = list(read_prompts(path, limit=limit).prompts)
    total, ratios = len(prompts) * samples, []
    asyncio.run(load(url, prompts, N, 2 * rounds))  # warm
    for number in range(rounds):
        start = time.perf_counter()
        asyncio.run(load(url, prompts, samples, 2 * number))
        middle = time.perf_counter()
        probe(url, path, limit, samples, 2 * number + 1)
        end = time.perf_counter()
        plain, ours = total / (middle - start), total / (end - middle)
        ratios.append(ours / plain)
        print(f"round {number + 1}: clients {plain:.0f} samples/s, infalign probe {ours:.0f}, ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
