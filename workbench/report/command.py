"""The command ``infalign report``."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from infalign.detectors import Detector
from infalign.errors import InvalidValue
from workbench.connection import Connection
from workbench.criteria import Criterion, parse_criterion
from workbench.exports import EXPORTS
from workbench.judging import Judgments
from workbench.pace import Pace
from workbench.report.analysis import Question, analyse
from workbench.report.comparison import compare
from workbench.report.gate import parse_gate
from workbench.report.table import SampleTable, label_by_tag, read_labels
from workbench.store import read_settings, write_atomically

DEFAULT_HIT = "quantile<0.05"
JUDGE_REQUESTS, JUDGE_PATIENCE, JUDGE_TIMEOUT = 8, 300.0, 660.0


@click.command(short_help="Show what the samples of a campaign say.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--hit",
    "hits",
    multiple=True,
    help="What a hit is: reward<X, quantile<X, judge<X, text~REGEX or labels; again for more.  "
    f"[default: {DEFAULT_HIT}]",
)
@click.option(
    "--compare",
    "other",
    type=click.Path(file_okay=False, path_type=Path),
    help="Another campaign on the same prompts, such as of another checkpoint.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="What humans say: a table with the columns sample (prompt id, hyphen, index) and hit (true or false).",
)
@click.option("--label", "tag", metavar="TAG=VALUE", help="What humans say: samples with this tag are hits.")
@click.option("--judge", metavar="URL", help="Server whose rewards are the column judge, for --hit judge<X.")
@click.option("--judge-key", envvar="INFALIGN_JUDGE_KEY", show_envvar=True, help="API key of that server.")
@click.option(
    "--detector",
    metavar="SENSITIVITY,SPECIFICITY[,HITS,OTHERS]",
    help="How often --hit is right, and on how many labelled hits and others that was measured; "
    "rates are corrected, but those of --fail-if are not.",
)
@click.option(
    "--forecast", type=click.IntRange(2, 10**9), default=10_000, show_default=True, help="Largest k that is forecast."
)
@click.option(
    "--least",
    type=click.IntRange(1),
    help="Leave out prompts with fewer samples.  [default: half of the most; 1 with --until-width or --responses]",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: DIRECTORY/report.html]"
)
@click.option(
    "--export",
    "exports",
    type=click.Choice(list(EXPORTS)),
    multiple=True,
    help="Also write the samples in the format of that tool, into DIRECTORY; again for more.",
)
@click.option(
    "--fail-if", "gates", multiple=True, metavar="CONDITION", help="Exit with code 1 if, such as 'hit@16 > 0.05'."
)
def report(
    directory: Path,
    hits: tuple[str, ...],
    other: Path | None,
    labels: Path | None,
    tag: str | None,
    judge: str | None,
    judge_key: str | None,
    detector: str | None,
    forecast: int,
    least: int | None,
    output: Path | None,
    exports: tuple[str, ...],
    gates: tuple[str, ...],
) -> int:
    """Write what the samples in DIRECTORY say as one HTML page, and the same figures as JSON beside it.

    How bad is the worst of n? How often is at least one of k samples a hit? With intervals, by tag, and beyond the
    samples that there are. A hit is what --hit says.

    --fail-if compares the end of the interval that is on the safe side of chance: `hit@16 > 0.05` holds if the whole
    interval is above. `hit@16.high > 0.05` holds if a rate above cannot be excluded.
    """
    criteria = [parse_criterion(text) for text in hits or (DEFAULT_HIT,)]
    conditions = [parse_gate(text) for text in gates]
    if detector and sum("label" not in criterion.columns for criterion in criteria) > 1:
        raise InvalidValue(
            "--detector", detector, "one --hit beside it, and labels: it says how often that one is right"
        )
    table = _read_table(directory, least)
    extra: dict[str, Sequence[Any]] = {}
    if labels and tag:
        raise InvalidValue("--label", tag, "--labels or --label, not both")
    if labels or tag:
        extra["label"] = read_labels(labels, table) if labels else label_by_tag(str(tag), table)
    if judge:
        extra["judge"] = asyncio.run(_judge(judge, judge_key, directory, table))
    question = Question(criteria, extra, _parse_detector(detector), forecast)
    flags = {str(criterion): table.flag(criterion, extra) for criterion in criteria}
    result = analyse(directory, table, question, flags)
    if other:
        comparison = compare(directory, table, other, _read_table(other, least), _own(criteria))
        result = result.model_copy(update={"comparison": comparison})
    from workbench.report.page import render_page

    page, path = render_page(result), output or directory / "report.html"
    write_atomically(path, lambda new: new.write_text(page, encoding="utf-8"))
    text = result.model_dump_json(indent=1) + "\n"
    write_atomically(path.with_suffix(".json"), lambda new: new.write_text(text, encoding="utf-8"))
    for export in exports:
        name, write = EXPORTS[export]
        write(directory / name, result, table, flags)
        click.echo(f"{directory / name}: for {export}")
    click.echo(f"{path}: {result.samples:,} samples of {result.prompts:,} prompts")
    for found in result.hits:
        ends = dict.fromkeys((0, len(found.curve) - 1))
        rates = ", ".join(f"hit@{found.curve[i].k} {found.curve[i].rate}" for i in ends)
        click.echo(f"{found.criterion}: {rates}")
    failures = [line for condition in conditions for line in condition.check(result)]
    for line in failures:
        click.echo(f"failed: {line}", err=True)
    return 1 if failures else 0


def _read_table(directory: Path, least: int | None) -> SampleTable:
    """Read a campaign. Where prompts have different numbers of samples on purpose, none is left out by default."""
    settings = read_settings(directory)
    varies = settings.get("until_width") or settings.get("responses")
    return SampleTable(directory, 1 if least is None and varies else least)


def _own(criteria: Sequence[Criterion]) -> list[Criterion]:
    """Select the criteria that need nothing but the samples."""
    return [criterion for criterion in criteria if not {"judge", "label"} & set(criterion.columns)]


def _parse_detector(text: str | None) -> Detector | None:
    if text is None:
        return None
    parts = text.split(",")
    try:
        if len(parts) not in (2, 4):
            raise ValueError
        return Detector(float(parts[0]), float(parts[1]), *map(int, parts[2:]))
    except ValueError as error:
        wanted = str(error) if isinstance(error, InvalidValue) else "two rates, such as 0.9,0.95, or 0.9,0.95,120,400"
        raise InvalidValue("--detector", text, wanted) from error


async def _judge(url: str, key: str | None, directory: Path, table: SampleTable) -> list[float]:
    """Score the samples by a server. Scores are kept for each reward model, whatever its address."""
    async with Connection(url, key, Pace(JUDGE_REQUESTS, JUDGE_PATIENCE), JUDGE_TIMEOUT) as connection:
        session = await connection.get_session()
        judgments = Judgments(directory / f"judge-{session.calibration[:16]}.jsonl")
        return await judgments.complete(connection, table, JUDGE_REQUESTS)
