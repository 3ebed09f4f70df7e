"""The commands ``infalign train`` and ``infalign evaluate``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infalign.errors import InvalidValue
from infalign.home import bundle_path, home
from infalign.imports import quick_imports
from infalign.names import slug
from training.named_models import NamedModels, model_options
from training.stages import STAGES

if TYPE_CHECKING:
    from training.config import Config

MISSING = (
    ("model", "--policy", "the model to align: a directory, a hub id, or a GGUF file"),
    ("reward", "--reward", "at least one --reward or --harm"),
    (
        "data",
        "--prompts",
        "a file of at least 8 prompts to align on: JSON lines, or a JSON array, of texts or of objects such as "
        '{"prompt": "Why?"}, also .gz',
    ),
)
"""Sections that the shipped config ``adapter`` leaves to the command line, the options that do, and what they take."""
HEAVY = ("sft", "reward", "rollouts", "scorer", "ctrl", "evaluate", "judge")
"""Stages that run a model. A plan estimates memory and time for these."""


@click.command(short_help="Train a CTRL checkpoint.")
@click.argument("config", required=False)
@model_options
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key, such as ctrl.target_kl=1."
)
@click.option(
    "--data",
    "paths",
    multiple=True,
    type=click.Path(),
    help="Data file in place of those in CONFIG: JSON lines or a JSON array, also .gz; again for more.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Bundle directory.  [default: $INFALIGN_HOME/bundles/NAME]"
)
@click.option("--if-missing", is_flag=True, help="Do nothing if the bundle exists and is intact.")
@click.option(
    "--until",
    type=click.Choice([stage.name for stage in STAGES]),
    help="Stop after this stage and say where it left what it made.",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Say what would run and what is reused, with an estimate of memory and time; make nothing.",
)
def train(
    config: str | None,
    overrides: tuple[str, ...],
    paths: tuple[str, ...],
    output: Path | None,
    if_missing: bool,
    until: str | None,
    only_plan: bool,
    **options: Any,
) -> None:
    """Train by CONFIG (a YAML file, or a shipped one such as `demo`) and write the bundle.

    With --policy, --reward and --prompts, CONFIG may be left out: the policy is then aligned for best-of-4 with a LoRA
    adapter, by the shipped config `adapter`. Beside a CONFIG, what is named replaces its sections `model`, `reward` and
    `data`, and the defaults of other options are its own.

    Stages that are already done are reused, those of `infalign bundle` too; a run that was killed goes on where it
    stopped.
    """
    run_config = _make_config(config, NamedModels(**options), overrides, paths)
    if only_plan:
        _print_plan(run_config, until)
        return
    target = output or bundle_path(run_config.policy_name)
    if not (if_missing and _intact(target)):
        run(run_config, target, if_missing, until)


def _make_config(
    config: str | None, models: NamedModels, overrides: tuple[str, ...], paths: tuple[str, ...]
) -> "Config":
    from training.configs import ADAPTER, make_config, read_config

    if not config and not models.policy:
        raise InvalidValue("CONFIG", "nothing", "a config such as demo, or --policy, --reward and --prompts")
    if paths and models.prompts:
        raise InvalidValue("--data", ", ".join(paths), f"--data or --prompts, not both; --prompts is {models.prompts}")
    values = read_config(config or ADAPTER)
    keys = models.keys()
    if config in (None, ADAPTER):
        set_sections = {override.partition("=")[0].partition(".")[0] for override in overrides}
        for section, option, accepted in MISSING:
            if section not in keys.keys() | set_sections:
                raise InvalidValue(option, "none", accepted)
    result = make_config(values, overrides, paths, keys)
    if models.policy and not result.policy:  # the name alone is that of the policy as it is
        result = result.model_copy(update={"policy": slug(f"{result.name}-{result.procedure}", result.name)})
    return result


def run(config: "Config", target: Path, if_missing: bool = False, until: str | None = None) -> None:
    """Run a config and write its bundle. Stages and figures go to stderr, the directory of the bundle to stdout.

    Args:
        config: Config of the run.
        target: Directory of the bundle.
        if_missing: Do nothing if the bundle exists and is intact.
        until: Name of the stage after which the run ends.
    """
    from filelock import FileLock

    from training import disk, processes
    from training.interrupts import remember_interrupts
    from training.runtime import prepare_process

    runs = home() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(runs / f"{config.name}.lock") if processes.is_first() else nullcontext()
    with remember_interrupts(), disk.report_full_disk(runs, target.parent), lock:
        if if_missing and _intact(target, say_why_not=True):
            return
        with quick_imports():
            prepare_process(config.compute.report_to, config.from_hub)
            from training import pipeline
            from training.reward_model import accuracy_figures, read_accuracy

        result, reports = pipeline.train(config, runs, target, until)
    if not processes.is_first():
        return
    rows = [(report.name, "reused" if report.reused else f"{report.seconds:.1f} s") for report in reports]
    figures = accuracy_figures(read_accuracy(result)) if isinstance(result, Path) else result.policy().record.measured
    rows += [(name, f"{value:.3f}") for name, value in figures.items()]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value:>8}" for name, value in rows), file=sys.stderr)
    click.echo(str(result if isinstance(result, Path) else result.path))


@click.command(short_help="Measure a bundle.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.argument("prompts", required=False, type=click.Path(path_type=Path))
@click.option("--policy", help="One of several in the bundle.  [default: the bundle's own]")
@click.option("--draws", type=click.IntRange(2), default=64, show_default=True, help="Responses per prompt and model.")
@click.option(
    "-n", "ns", multiple=True, type=click.IntRange(2), default=(2, 4, 8), show_default=True, help="Best and worst of N."
)
@click.option("--judge", help="An independent judge: `helpdesk` (the demo's ground truth) or a classifier's directory.")
@click.option(
    "--judge-output", type=click.IntRange(0), help="Which output of the classifier is the score, where it has several."
)
@click.option(
    "--record",
    is_flag=True,
    help="Measure instead how large N may be by the judge, on validation prompts, and write it into BUNDLE.",
)
@click.option("--limit", type=click.IntRange(1), help="Use so many prompts at most.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the draws.")
@click.option(
    "--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True, help="What draws."
)
@click.option(
    "--trust-rewards", is_flag=True, help="Run the functions, and ask the services and judges, that the bundle names."
)
@click.option("--json", "as_json", is_flag=True, help="Every figure, instead of the table.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw win rate against KL: .png or .svg.")
def evaluate(bundle: Path | None, prompts: Path | None, as_json: bool, record: bool, **options: Any) -> None:
    """Measure BUNDLE (default: the demo) on fresh draws: win rates with intervals, KL, theory beside it.

    PROMPTS are JSON lines, or a JSON array, of rows with a `prompt` of text or messages. Without them, the test
    prompts in the bundle are used, which no stage trained on; with --record, its validation prompts.
    """
    from training.interrupts import remember_interrupts
    from training.runtime import prepare_process

    with remember_interrupts():
        with quick_imports():
            prepare_process()
            from training.evaluation import report
            from training.evaluation.command import Request, evaluate_bundle

        request = Request(bundle=bundle or bundle_path("demo"), prompts=prompts, **options)
        if record:
            from training.evaluation.record import record_judge

            click.echo(record_judge(request, as_json), nl=False)
            return
        evaluation = evaluate_bundle(request)
    click.echo(report.as_json(evaluation) if as_json else report.as_text(evaluation), nl=False)


def _print_plan(config: "Config", until: str | None) -> None:
    from training.machine import available_memory
    from training.memory import gigabytes
    from training.pipeline import plan
    from training.planning import as_range, estimate_stages, read_sizes

    reports = plan(config, home() / "runs", until)
    sizes = read_sizes(config, reports[0].directory)
    of_stages = {} if isinstance(sizes, str) else estimate_stages(config, sizes)
    click.echo(f"{'stage':<10}  {'':<7}  {'memory':>8}  {'time':>10}")
    for report in reports:
        cells = "", ""
        if report.name in HEAVY and not report.reused and (config.sft or report.name != "sft"):
            estimate = of_stages.get(report.name)
            cells = (
                gigabytes(estimate.memory) if estimate and estimate.memory else "unknown",
                as_range(estimate.seconds) if estimate and estimate.seconds else "unknown",
            )
        row = f"{report.name:<10}  {'reused' if report.reused else 'to run':<7}  {cells[0]:>8}  {cells[1]:>10}"
        click.echo(row.rstrip())
    if isinstance(sizes, str):
        click.echo(f"Memory and time are unknown {sizes}.", err=True)
    else:
        free = gigabytes(available_memory())
        click.echo(
            f"Memory and time are estimates; {free} of memory are available. See docs/guides/training.md.", err=True
        )


def _intact(target: Path, say_why_not: bool = False) -> bool:
    from infalign.bundle import read_bundle
    from infalign.errors import BundleError

    try:
        read_bundle(target)
    except BundleError as error:
        if say_why_not:
            click.echo(f"{error}; training", err=True)
        return False
    click.echo(f"{target}: already there", err=True)
    return True
