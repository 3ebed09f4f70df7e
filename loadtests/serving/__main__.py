"""Best-of-n beside the engines alone and beside peers, interleaved in one sitting; ``make bench-serving`` runs it.

    python -m loadtests.serving --short                 our server beside the engines alone, under five minutes
    python -m loadtests.serving --peers DIRECTORY       and peers, each in an environment DIRECTORY/NAME

All systems serve the same two random models. They take turns at each load, in a changing order, and are suspended
between their turns. Ratios are of turns of the same round.
"""

import random
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from loadtests.serving.growth import grow
from loadtests.serving.growth import table as growth_table
from loadtests.serving.models import bundle, make, prompts
from loadtests.serving.systems import Running, Turn, engines_alone, its_hub, on_vllm, optillm, our_server

ROOT = Path(__file__).parents[2]
TOKENS, LENGTH = 64, 190
PEERS_N, PEERS_CLIENTS = 16, 8
OURS, VLLM_PORT = "infalign", 8120


def requests(clients: int, n: int) -> int:
    """How many requests of a load: each client sends two where that is not too many candidates, or one."""
    return max(clients * (1 if clients * n > 256 else 2), 48 // n, 2)


def compare(systems: list[Running], clients: int, n: int, rounds: int) -> dict[str, list[Turn]]:
    """Turns of each system at one load, round by round."""
    turns: dict[str, list[Turn]] = defaultdict(list)
    for number in range(rounds):
        for place, system in random.Random(number).sample(list(enumerate(systems)), len(systems)):
            # Texts of their own for each turn: peers share servers, which remember what they have read.
            texts = prompts(requests(clients, n), LENGTH, seed=((clients * 1000 + n) * 100 + number) * 10 + place)
            load = {"clients": clients, "n": n, "tokens": TOKENS, "prompts": texts}
            turns[system.system.name].append(system.measure(load))
    return turns


def table(title: str, systems: list[Running], turns: dict[str, list[Turn]]) -> str:
    """A Markdown table of all systems at one load."""
    lines = [
        title,
        "",
        "| system | requests/s | ratio of ours | p50 s | p95 s | p99 s | tokens | cores | PSS GB | start s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for system in systems:
        own = turns[system.system.name]
        rates = np.array([turn.rate for turn in own])
        ratios = np.array([ours.rate for ours in turns[OURS]]) / rates
        p50, p95, p99 = np.percentile([latency for turn in own for latency in turn.latencies], [50, 95, 99])
        tokens = sum(turn.tokens for turn in own) / sum(turn.requests for turn in own)
        lines.append(
            f"| {system.system.name} | {np.median(rates):.3f} ({rates.min():.3f}–{rates.max():.3f}) "
            f"| {np.median(ratios):.2f} ({ratios.min():.2f}–{ratios.max():.2f}) | {p50:.1f} | {p95:.1f} | {p99:.1f} "
            f"| {tokens:.0f} | {np.mean([turn.cores for turn in own]):.2f} | {max(turn.pss for turn in own):.1f} "
            f"| {system.start_seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--short", is_flag=True, help="Our server beside the engines alone, at 8 clients and N = 4 and 16.")
@click.option("--peers", type=click.Path(exists=True, path_type=Path), help="Folder of environments: its_hub, optillm.")
@click.option("--baseline", type=click.Path(exists=True, path_type=Path), help="Checkout of another commit to compare.")
@click.option(
    "--growth", is_flag=True, help="How the cost of our server grows with N, clients and prompts, and no more."
)
@click.option("--models", type=click.Path(path_type=Path), help="Where the models are, or are made.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(
    short: bool, peers: Path | None, baseline: Path | None, growth: bool, models: Path | None, rounds: int
) -> None:
    """Print tables of requests per second, ratios, latencies, memory and cores."""
    with TemporaryDirectory() as scratch:
        made = make(models or Path(scratch))
        if growth:
            running = Running(our_server(bundle(made, ROOT), ROOT, 8100), Path(scratch) / "log")
            try:
                print(growth_table(grow(running, TOKENS)))
            finally:
                running.stop()
            return
        systems = [engines_alone(bundle(made, ROOT), ROOT), our_server(bundle(made, ROOT), ROOT, 8100)]
        if baseline:
            systems.append(our_server(bundle(made, baseline), baseline, 8110, f"infalign of {baseline.name}"))
        others = [on_vllm(made, VLLM_PORT)] if peers or not short else []
        if peers:
            for name, peer in {"its_hub": its_hub, "optillm": optillm}.items():
                others.append(peer(VLLM_PORT, str(peers / name / "bin" / "python"), PEERS_N))
        with ExitStack() as stack:
            everyone: list[Running] = []
            for number, system in enumerate(systems + others):
                below = everyone[len(systems)] if number > len(systems) else None
                running = Running(system, Path(scratch) / f"{number}.log", below)
                stack.callback(running.stop)
                everyone.append(running)
                running.measure({"clients": 2, "n": 4, "tokens": 16, "prompts": prompts(2, LENGTH, seed=0)})  # warm up
                click.echo(f"{system.name}: ready after {running.start_seconds:.0f} s ({system.note})", err=True)
            if others:
                turns = compare(everyone, PEERS_CLIENTS, PEERS_N, rounds)
                print(table(f"{PEERS_CLIENTS} clients, N = {PEERS_N}", everyone, turns), flush=True)
            own = everyone[: len(systems)]
            for clients in (8,) if short else (1, 8, 32):
                for n in (4, 16) if short else (4, 16, 64):
                    print(table(f"{clients} clients, N = {n}", own, compare(own, clients, n, rounds)), flush=True)


if __name__ == "__main__":
    main()
