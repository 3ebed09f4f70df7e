"""Best-of-n beside the engines alone and beside peers, interleaved in one sitting; ``make bench-serving`` runs it.

    python -m loadtests.serving --short                       our server beside the engines alone, under five minutes
    python -m loadtests.serving --peers DIRECTORY             and peers, each in an environment DIRECTORY/NAME
    python -m loadtests.serving --settings "--block-size 128"      our server beside itself, set up otherwise
    python -m loadtests.serving --growth                      how the cost grows with N, clients and prompts

All systems serve the same two random models. They take turns at each load, in a changing order, and are suspended
between their turns. Ratios are of turns of the same round.
"""

import random
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from infalign.plots import check_path
from loadtests.serving import growth, report
from loadtests.serving.models import LENGTH, Models
from loadtests.serving.systems import Running, System, Turn, engines_alone, its_hub, on_vllm, optillm, our_server

ROOT = Path(__file__).parents[2]
OURS, OPTILLM, VLLM_PORT = "infalign", "optillm", 8120
OPTILLM_N = 16
"""Optillm has its N from the command that starts it."""


@dataclass(frozen=True)
class Load:
    """So many clients, each of which asks for the best of N and then asks again."""

    clients: int
    n: int

    @property
    def tokens(self) -> int:
        """Of each candidate; half as many where it would take minutes."""
        return 64 if self.clients * self.n <= 1024 else 32

    @property
    def requests(self) -> int:
        """Two from each client where that is not too many candidates, else one."""
        return max(self.clients * (1 if self.clients * self.n > 256 else 2), 48 // self.n, 4)

    def __str__(self) -> str:
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{clients}, N = {self.n}, {self.tokens} tokens"


WITH_PEERS = (Load(8, 16), Load(8, 4))
OWN = tuple(Load(clients, n) for clients in (1, 8, 32) for n in (4, 16, 64))
SETTINGS = (Load(1, 16), Load(8, 4), Load(8, 16))


class Stand:
    """What is running, and what it runs on.

    Args:
        models: what is served.
        scratch: folder for logs.
        stack: ends what is running.
        rounds: turns of each system at a load.
    """

    def __init__(self, models: Models, scratch: Path, stack: ExitStack, rounds: int) -> None:
        self.models, self._scratch, self._stack, self._rounds = models, scratch, stack, rounds

    def start(self, system: System, below: Running | None = None) -> Running:
        """Start a system and have it answer once."""
        log = self._scratch / f"{len(list(self._scratch.iterdir()))}.log"
        running = Running(system, log, below)
        self._stack.callback(running.stop)
        running.measure({"clients": 2, "n": 4, "tokens": 16, "prompts": self.models.prompts(2, LENGTH, seed=0)})
        click.echo(f"{system.name}: ready after {running.start_seconds:.0f} s ({system.note})", err=True)
        return running

    def compare(self, systems: Sequence[Running], load: Load) -> report.Table:
        """Measure each system at one load, in rounds; the table is printed too."""
        turns: dict[str, list[Turn]] = defaultdict(list)
        for number in range(self._rounds):
            for place, system in random.Random(number).sample(list(enumerate(systems)), len(systems)):
                # Texts of their own for each turn: peers share servers, which remember what they have read.
                seed = ((load.clients * 1000 + load.n) * 100 + number) * 10 + place
                texts = self.models.prompts(load.requests, LENGTH, seed)
                if system.system.name == OPTILLM:  # it takes minutes for what others do in seconds
                    texts = texts[: load.clients]
                sent = {"clients": load.clients, "n": load.n, "tokens": load.tokens, "prompts": texts}
                turns[system.system.name].append(system.measure(sent))
        table = report.table(str(load), systems, turns, OURS)
        print(table, flush=True)
        return table


@click.command()
@click.option("--short", is_flag=True, help="Our server beside the engines alone, at 8 clients and N = 4 and 16.")
@click.option("--peers", type=click.Path(exists=True, path_type=Path), help="Folder of environments: its_hub, optillm.")
@click.option("--baseline", type=click.Path(exists=True, path_type=Path), help="Checkout of another commit to compare.")
@click.option("--settings", multiple=True, help="Options and variables that a second server of ours gets; repeatable.")
@click.option("--growth", "only_growth", is_flag=True, help="How the cost of our server grows, and no more.")
@click.option("--models", type=click.Path(path_type=Path), help="Where the models are, or are made.")
@click.option("--vocabulary", type=click.IntRange(min=1000), default=4096, show_default=True, help="Of the models.")
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw the result (.svg or .png), with a JSON file beside."
)
def main(
    short: bool,
    peers: Path | None,
    baseline: Path | None,
    settings: tuple[str, ...],
    only_growth: bool,
    models: Path | None,
    vocabulary: int,
    rounds: int,
    plot: Path | None,
) -> None:
    """Print tables of requests per second, ratios, latencies, memory and cores."""
    if plot:
        check_path(plot)
    with TemporaryDirectory() as folder, TemporaryDirectory() as scratch, ExitStack() as stack:
        served = Models(models or Path(folder), vocabulary)
        served.make()
        stand = Stand(served, Path(scratch), stack, rounds)
        ours = our_server(served.bundle(ROOT), ROOT, 8100)
        if only_growth:
            points = growth.grow(stand.start(ours), served)
            print(growth.table(points))
            if plot:
                growth.draw(points, plot)
            return
        if settings:
            tables = compare_settings(stand, stand.start(ours), settings)
        else:
            tables = compare_systems(stand, ours, short, peers, baseline)
        if plot:
            report.draw(tables, plot)


def compare_settings(stand: Stand, ours: Running, settings: Sequence[str]) -> list[report.Table]:
    """Our server beside one that is set up otherwise, one after the other."""
    tables = []
    for one in settings:
        other = stand.start(our_server(stand.models.bundle(ROOT), ROOT, 8110, one, one))
        tables += [stand.compare([ours, other], load) for load in SETTINGS]
        other.stop()
    return tables


def compare_systems(
    stand: Stand, ours: System, short: bool, peers: Path | None, baseline: Path | None
) -> list[report.Table]:
    """Our server beside its engines alone, and beside others at some of the loads."""
    own = [stand.start(engines_alone(stand.models.bundle(ROOT), ROOT)), stand.start(ours)]
    others = []
    if baseline:
        name = f"infalign at {commit(baseline)}"
        others.append(stand.start(our_server(stand.models.bundle(baseline), baseline, 8110, name)))
    if peers or not short:
        others.append(vllm := stand.start(on_vllm(stand.models.directory, VLLM_PORT, tuned=True)))
    if peers:
        others.append(stand.start(its_hub(VLLM_PORT, python(peers, "its_hub")), vllm))
        others.append(stand.start(optillm(VLLM_PORT, python(peers, OPTILLM), OPTILLM_N), vllm))
    tables = []
    for load in WITH_PEERS:
        able = [one for one in (*own, *others) if one.system.name != OPTILLM or load.n == OPTILLM_N]
        tables.append(stand.compare(able, load))
    if short:
        return tables
    for other in others:
        other.stop()
    plain = [stand.start(on_vllm(stand.models.directory, VLLM_PORT, tuned=False))]
    if peers:
        on_plain = its_hub(VLLM_PORT, python(peers, "its_hub"), "its_hub on vLLM as it comes")
        plain.append(stand.start(on_plain, plain[0]))
    tables += [stand.compare([own[1], *plain], load) for load in WITH_PEERS]
    for one in plain:
        one.stop()
    return tables + [stand.compare(own, load) for load in OWN if load not in WITH_PEERS]


def python(peers: Path, name: str) -> str:
    """The interpreter of a peer's environment."""
    return str(peers / name / "bin" / "python")


def commit(checkout: Path) -> str:
    """What is checked out there."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
