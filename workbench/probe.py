"""The command ``infalign probe``."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from infalign.errors import InvalidValue, shorten
from workbench.augmentations import Augmentation, parse_augmentations
from workbench.campaign import Campaign, Target
from workbench.connection import Connection
from workbench.criteria import Criterion, parse_criterion
from workbench.errors import AccessDenied
from workbench.options import Access, access_options, sampling_options
from workbench.prompts import Prompt, PromptFile, read_prompts
from workbench.runner import run_tasks
from workbench.samples import Sample
from workbench.sources import MOST_PER_REQUEST, AugmentedDraws, Draws, GivenResponses, Sampling, Source
from workbench.store import Store


@dataclass(frozen=True)
class Plan:
    """What is to be drawn or scored, and where it is stored."""

    file: PromptFile
    output: Path
    settings: dict[str, Any]
    target: Target
    augmentation: Augmentation | None
    model: str | None

    def count(self, prompt: Prompt) -> int:
        """Count the samples that there may be of a prompt."""
        return len(self.file.responses.get(prompt.id, ())) if self.settings["responses"] else self.target.n

    def make_source(self, connection: Connection, sampling: Sampling) -> Source:
        """Make the source of the samples."""
        if self.settings["responses"]:
            return GivenResponses(connection, sampling, self.file.responses)
        if self.augmentation:
            return AugmentedDraws(connection, sampling, self.augmentation)
        return Draws(connection, sampling)


@click.command(short_help="Draw many samples of each prompt of a file, and store them.")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the campaign."
)
@click.option("--n", type=click.IntRange(1, 2**20), default=64, show_default=True, help="Samples of each prompt.")
@click.option(
    "--until-width",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Draw until the 95% interval of a prompt's share of hits is this narrow, and at most --n. Needs --hit.",
)
@click.option("--hit", help="With --until-width, what a hit is: reward<X, quantile<X, or text~REGEX.")
@click.option(
    "--augment",
    "augmentations",
    multiple=True,
    help="Change the prompt for each sample: scramble, capitals or noise, with a share as in noise(0.1); again for "
    "more.",
)
@click.option("--responses", metavar="COLUMN", help="Draw nothing; score the responses in this column of the file.")
@click.option("--column", help="Column with the prompts.  [default: messages, prompt or chosen]")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many prompts.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Seed of all samples.")
@click.option("--calibrate", is_flag=True, help="Calibrate each prompt first, with K draws from the reference.")
@click.option("--model", help="Policy of the server.  [default: its first]")
@sampling_options
@access_options
def probe(
    prompts: Path,
    output: Path,
    n: int,
    until_width: float | None,
    hit: str | None,
    augmentations: tuple[str, ...],
    responses: str | None,
    column: str | None,
    limit: int | None,
    seed: int,
    calibrate: bool,
    model: str | None,
    sampling: dict[str, Any],
    access: Access,
) -> int:
    """Draw --n samples of each prompt of the file PROMPTS, with rewards and quantiles, and store them in --output.

    PROMPTS is JSON lines, JSON, CSV, TSV, Parquet or lines of text; HH-RLHF's transcripts are read too. The other
    columns of a row are kept as tags. If the command is stopped, in whatever way, the same command goes on where it
    was. `infalign report` shows what the samples say.

    The exit code is 1 if some samples could not be had.
    """
    augmentation = parse_augmentations(augmentations)
    criterion = _parse_hit(hit, until_width)
    if responses and (augmentation or until_width):
        raise InvalidValue("--responses", responses, "neither --augment nor --until-width beside it: nothing is drawn")
    file = read_prompts(prompts, column, limit, responses)
    for note in file.notes:
        click.echo(note, err=True)
    if augmentation and (other := next((prompt for prompt in file.prompts if not prompt.last_text), None)):
        wanted = f"prompts whose last message is a text, which {shorten(other.text, 80)} has not"
        raise InvalidValue("--augment", str(augmentation), wanted)
    output.mkdir(parents=True, exist_ok=True)
    settings = {
        "file": prompts.name,
        "prompts": len(file.prompts),
        "prompts_digest": file.digest,
        "seed": seed,
        "sampling": sampling,
        "calibrate": calibrate,
        "augmentation": str(augmentation) if augmentation else None,
        "responses": responses,
        "n": n,
        "until_width": until_width,
        "hit": str(criterion) if criterion else None,
    }
    plan = Plan(file, output, settings, Target(n, until_width, criterion), augmentation, model)
    with access.serve(output / "server.log") as url:
        return asyncio.run(_run(plan, url, access))


def _parse_hit(hit: str | None, until_width: float | None) -> Criterion | None:
    if until_width is None:
        if hit is not None:
            raise InvalidValue("--hit", hit, "nothing without --until-width; infalign report takes any --hit")
        return None
    if hit is None:
        raise InvalidValue("--hit", None, "what a hit is, for --until-width")
    criterion = parse_criterion(hit)
    if not set(criterion.columns) <= Sample.model_fields.keys():
        raise InvalidValue("--hit", hit, "reward<X, quantile<X or text~REGEX: what is known while samples are drawn")
    return criterion


async def _run(plan: Plan, url: str, access: Access) -> int:
    async with access.connect(url) as connection:
        session = await connection.get_session()
        if not {"probe", "admin"} & set(session.roles):
            roles = ", ".join(session.roles)
            raise AccessDenied(f"--key: a campaign takes a key with the role probe, {session.caller} has {roles}")
        policy = session.find_policy(plan.model)
        settings = plan.settings
        bundle = f"{policy.digest[:16]}-{session.calibration[:16]}"
        sampling = Sampling(policy.id, bundle, settings["seed"], settings["calibrate"], settings["sampling"])
        source = plan.make_source(connection, sampling)
        store = Store(plan.output, {**settings, "model": policy.id, "bundle": bundle})
        for note in store.notes:
            click.echo(note, err=True)
        workers = min(access.concurrency * (MOST_PER_REQUEST // source.per_request), session.max_requests)
        connection.pace.allow(workers)
        total = sum(map(plan.count, plan.file.prompts))
        try:
            with tqdm(total=total, initial=store.settled, unit=" samples", smoothing=0.05) as bar:
                campaign = Campaign(source, store, plan.target, policy.max_n["worst-of-n"], access.retries, bar.update)
                await run_tasks(campaign.tasks(plan.file.prompts, plan.count), workers)
        finally:
            store.close()
    return _summarise(store, plan.output)


def _summarise(store: Store, output: Path) -> int:
    click.echo(f"{len(store):,} samples in {output}; next: infalign report {output}")
    if not store.failures:
        return 0
    codes = Counter[str]()
    for failure in store.failures:
        codes[failure.code] += len(failure.indices)
    missing = ", ".join(f"{count:,} by {code}" for code, count in codes.most_common())
    first = store.failures[0]
    click.echo(
        f"missing samples: {missing}. The first: {first.message} ({output / 'failures.jsonl'})",
        err=True,
    )
    return 1
