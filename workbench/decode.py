"""The command ``infalign decode``."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from infalign.errors import InvalidValue
from infalign.parsing import parse_procedure
from infalign.procedures import BestOfN, FixedN, Standard, WorstOfN
from workbench.batch import Batch, Item, is_batch_file, make_items, read_batch
from workbench.options import Access, access_options, sampling_options
from workbench.prompts import read_all_prompts
from workbench.runner import run_tasks

DEFAULT_PROCEDURE = "best-of-8"
SUFFIXES = (".jsonl", ".parquet")


@click.command(short_help="Answer every prompt of a file by best-of-N or worst-of-N.")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File that ends in .jsonl or .parquet.",
)
@click.option("--procedure", help=f"standard, best-of-N or worst-of-N.  [default: {DEFAULT_PROCEDURE}]")
@click.option("--target-quantile", type=click.FloatRange(0, 1), help="Stop drawing when a candidate reaches it.")
@click.option("--return-candidates", is_flag=True, help="Write all candidates, and not the selected one alone.")
@click.option("--column", help="Column with the prompts.  [default: messages, prompt or chosen]")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many rows.")
@click.option("--seed", type=click.IntRange(0, 2**62), help="Seed of each prompt's first candidate.  [default: random]")
@click.option("--model", help="Policy of the server.  [default: its first]")
@sampling_options
@access_options
def decode(
    prompts: Path,
    output: Path,
    procedure: str | None,
    target_quantile: float | None,
    return_candidates: bool,
    column: str | None,
    limit: int | None,
    seed: int | None,
    model: str | None,
    sampling: dict[str, Any],
    access: Access,
) -> int:
    """Answer each prompt of the file PROMPTS, and write the selected candidates with their rewards and quantiles.

    The output has one row for each row of the file, in the same order.

    PROMPTS is JSON lines, JSON, CSV, TSV, Parquet or lines of text. A file in OpenAI's batch format is answered in that
    format. If the command is stopped, the same command goes on where it was.

    The exit code is 1 if some rows have an error in place of an answer.
    """
    if output.suffix not in SUFFIXES:
        raise InvalidValue("--output", str(output), "a file that ends in .jsonl or .parquet")
    if output.exists():
        raise InvalidValue("--output", str(output), "a file that does not exist yet")
    given = {"target_quantile": target_quantile, "seed": seed, "model": model}
    fields = {**sampling, **{name: value for name, value in given.items() if value is not None}}
    if is_batch_file(prompts):
        others = {"procedure": procedure, "column": column, "return_candidates": return_candidates or None}
        items = _read_requests(prompts, output, {**fields, **others})
    else:
        rows = read_all_prompts(prompts, column, limit)
        items = make_items(rows, _parse_procedure(procedure or DEFAULT_PROCEDURE), fields, return_candidates)
    items = items[:limit]
    with access.serve(output.with_name(f"{output.name}.server.log")) as url:
        batch = asyncio.run(_run(output, items, url, access))
    failures = batch.finish()
    click.echo(f"{output}: answers {len(items) - failures:,}, errors {failures:,}")
    return 1 if failures else 0


def _read_requests(prompts: Path, output: Path, options: Mapping[str, Any]) -> list[Item]:
    """Read a batch, whose requests say everything themselves."""
    if others := [name for name, value in options.items() if value is not None]:
        option = f"--{others[0].replace('_', '-')}"
        raise InvalidValue(option, options[others[0]], "nothing for a file in OpenAI's batch format, whose rows say it")
    if output.suffix != ".jsonl":
        raise InvalidValue("--output", str(output), "a file that ends in .jsonl, for a file in OpenAI's batch format")
    return read_batch(prompts)


def _parse_procedure(text: str) -> FixedN:
    try:
        procedure = parse_procedure(text)
    except InvalidValue as error:
        raise InvalidValue("--procedure", text, "standard, best-of-N or worst-of-N") from error
    if not isinstance(procedure, Standard | BestOfN | WorstOfN):
        raise InvalidValue("--procedure", text, "standard, best-of-N or worst-of-N")
    return procedure


async def _run(output: Path, items: Sequence[Item], url: str, access: Access) -> Batch:
    names = {name for item in items if isinstance(name := item.body.get("model"), str | None)}
    async with access.connect(url) as connection:
        session = await connection.get_session()
        batch = Batch(output, items, session.hash_policies(names))
        missing = [number for number in range(len(items)) if number not in batch.rows]
        with tqdm(total=len(items), initial=len(items) - len(missing), unit=" prompts", smoothing=0.05) as bar:

            async def ask(number: int) -> None:
                await batch.ask(connection, number, items[number], access.retries)
                bar.update()

            await run_tasks((partial(ask, number) for number in missing), access.concurrency)
    return batch
