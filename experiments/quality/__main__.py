"""The command of the experiment."""

import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click

from benchmarks.overhead import free_port, run_server, serve_command
from experiments.quality.client import Client
from experiments.quality.figures import Curve, Measured
from experiments.quality.measure import Plan, Reference, measure_curve, measure_ways
from experiments.quality.replay import read_pool, replay_pool
from experiments.quality.report import describe, draw_picture, write_table
from experiments.quality.ways import BLOCKS, Family, list_ways
from infalign.bundle import SCORER, read_bundle
from infalign.templates import Message
from training.judges import load_judge

RESULTS = "quality.json"
PICTURE = "quality.svg"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
@click.option("--output", required=True, type=FOLDER, help="Folder of quality.json and quality.svg.")
@click.pass_context
def main(context: click.Context, output: Path) -> None:
    """Measure what quality costs by fixed N, adaptive N, early rejection and controlled decoding."""
    context.obj = output


@main.command()
@click.argument("name")
@click.argument("bundle", type=FOLDER)
@click.argument("prompts", type=FILE)
@click.option("--judge", help="helpdesk, or the directory of a classifier.")
@click.option("--blocks", default=",".join(f"{k}x{m}" for k, m in BLOCKS), show_default=True, help="Controlled: KxM.")
@click.option("--count", type=click.IntRange(2), default=72, show_default=True, help="Prompts at most.")
@click.option("--draws", type=click.IntRange(8), default=64, show_default=True, help="Reference responses per prompt.")
@click.option("--clients", type=click.IntRange(1), default=1, show_default=True, help="Requests at the same time.")
@click.option("--trust-rewards", is_flag=True, help="Run the functions that the bundle names as rewards.")
@click.option("--repeats", type=click.IntRange(1), default=2, show_default=True, help="Requests per way and prompt.")
@click.pass_obj
def serve(
    output: Path,
    name: str,
    bundle: Path,
    prompts: Path,
    judge: str | None,
    blocks: str,
    count: int,
    draws: int,
    repeats: int,
    clients: int,
    trust_rewards: bool,
) -> None:
    """Serve BUNDLE and its reference, one after the other, and measure on PROMPTS (JSON lines with a `prompt`)."""
    rows = (json.loads(line)["prompt"] for line in prompts.read_text(encoding="utf-8").splitlines())
    texts: list[Sequence[Message]] = [
        [{"role": "user", "content": row}] if isinstance(row, str) else row for row in islice(rows, count)
    ]
    family: Family = "worst" if read_bundle(bundle).policy().record.procedure.startswith("worst") else "best"
    sizes = tuple((int(k), int(block)) for k, _, block in (each.partition("x") for each in blocks.split(",")))
    plan = Plan(texts, list_ways(family, (bundle / SCORER).is_dir(), sizes), family, draws, repeats, clients)
    log, command = Path(tempfile.mkdtemp()) / "server.log", serve_command(str(bundle))
    command += ["--trust-rewards"] if trust_rewards else []
    with run_server([*command, "--reference"], free_port(), log) as address:
        reference = Reference(plan, Client(address), load_judge(judge) if judge else None)
    with run_server(command, free_port(), log) as address:
        client = Client(address)
        plan.map_prompts(lambda place: client.calibrate(texts[place]))
        curve = measure_curve(plan, client, reference)
        measured = measure_ways(plan, client, reference, lambda line: click.echo(line, err=True))
    _write(output, name, measured, curve)


@main.command()
@click.argument("name")
@click.argument("pool", type=FILE)
@click.pass_obj
def replay(output: Path, name: str, pool: Path) -> None:
    """Replay stopping rules on POOL (JSON lines with scored `responses`). There is no time and no scorer."""
    _write(output, name, *replay_pool(*read_pool(pool)))


def _write(output: Path, name: str, measured: list[Measured], curve: Curve) -> None:
    """Put a measurement in place of an older one of its name, and draw the picture again."""
    path = output / RESULTS
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[name] = describe(measured, curve)
    draw_picture(results, output / PICTURE)  # writes the figures beside it too
    click.echo(write_table(results[name]))


if __name__ == "__main__":
    main()
