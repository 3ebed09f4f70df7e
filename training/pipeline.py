"""The pipeline of a run: data → sft → reward → rollouts → calibrate → scorer → ctrl → evaluate → judge → bundle.

:data:`training.stages.STAGES` lists the stages and :mod:`training.runner` runs them. A plan goes through the same
stages but builds none. To keep a plan fast, slow libraries are imported only when a stage needs them.
"""

import json
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infalign.bundle import Bundle
from infalign.bundling import NewPolicy, write_bundle
from infalign.errors import InvalidValue
from infalign.estimators import Estimate
from infalign.imports import quick_imports
from infalign.manifest import Alignment
from infalign.reasoning import AnswerProcess
from training import planning, processes
from training.config import Config
from training.pins import list_origins, pin_models
from training.reached import describe_miss
from training.runner import Runner, StageReport, Stopped
from training.stages import STAGES, Artifacts

LIBRARIES = ("infalign", "torch", "transformers", "trl")
"""Libraries whose versions a bundle records."""


def plan(config: Config, runs: Path, until: str | None = None) -> list[StageReport]:
    """List every stage of a run and say which of them are already done. Nothing is built.

    Args:
        config: Config of the run.
        runs: Folder of all runs.
        until: Name of the last stage, if not all of them.

    Returns:
        A report per stage.
    """
    config = pin_models(config, strict=False)
    return _plan(config, _make_runner(config, runs, dry=True, until=until))


def train(
    config: Config, runs: Path, output: Path, until: str | None = None
) -> tuple[Bundle | Path, list[StageReport]]:
    """Run every stage that is not done yet, and write the bundle.

    Args:
        config: Config of the run.
        runs: Folder of all runs.
        output: Directory of the bundle.
        until: Name of the stage after which the run ends.

    Returns:
        The bundle, and a report per stage. With ``until`` it is the directory of that stage instead of a bundle. If
        several processes train together, the first one writes the bundle and the others get the directory of the last
        stage.

    Raises:
        InvalidValue: The config cannot be run.
        TooLittleMemory: A stage would not fit into memory.
    """
    config = pin_models(config)
    runner = _make_runner(config, runs, until=until)
    try:
        artifacts = _run_stages(config, runner)
    except Stopped as stopped:
        return stopped.directory, runner.reports
    if not processes.is_first():
        return runner.reports[-1].directory, runner.reports
    start = time.monotonic()
    with TemporaryDirectory() as scratch:
        bundle = _write_bundle(config, artifacts, output, Path(scratch))
    runner.reports.append(StageReport("bundle", time.monotonic() - start, False, bundle.path))
    return bundle, runner.reports


def run_stages(config: Config, runs: Path, until: str | None = None) -> Artifacts:
    """Run every stage, but write no bundle.

    Args:
        config: Config of the run.
        runs: Folder of all runs.
        until: Name of the last stage, if not all of them.

    Returns:
        The directories of the stages that the run has.
    """
    config = pin_models(config)
    runner = _make_runner(config, runs, until=until)
    with suppress(Stopped):
        return _run_stages(config, runner)
    return Artifacts({report.name: report.directory for report in runner.reports})


def _make_runner(config: Config, runs: Path, dry: bool = False, until: str | None = None) -> Runner:
    stages = [stage for stage in STAGES if stage.is_part_of(config)]
    if until not in (None, *(stage.name for stage in stages)):
        names = ", ".join(stage.name for stage in stages)
        raise InvalidValue("--until", until, f"a stage of this run, which has no section ctrl: {names}")
    return Runner(runs / config.name, dry, until, stages)


def _run_stages(config: Config, runner: Runner) -> Artifacts:
    artifacts = Artifacts()
    if not runner.dry:
        _check(config)
        _check_processes(config, runner)
    for stage in runner.stages:
        artifacts.directories[stage.name] = runner.run(stage, config, artifacts)
        if stage.name == "ctrl" and not runner.dry and processes.is_first():
            solution = _read(artifacts.policy.parent / "solved.json")
            if config.ctrl and (miss := describe_miss(solution, config.ctrl.target_kl)):
                print(f"ctrl: {miss}", file=sys.stderr)
        if stage.name == "data" and not runner.dry:
            _check_splits(config, artifacts.data)
            missing = [report.name for report in _plan(config, runner.dry_copy()) if not report.reused]
            planning.check_stages(config, artifacts.data, missing)
            if config.rollouts.reasoning_parser and "rollouts" in missing:
                AnswerProcess(
                    config.rollouts.reasoning_parser, None
                ).close()  # checks the name, before anything is long
            if processes.is_first():  # which alone announces stages; estimating takes half a second
                runner.countdown.expect(planning.estimate_seconds(config, artifacts.data, missing))
    return artifacts


def _plan(config: Config, runner: Runner) -> list[StageReport]:
    with suppress(Stopped):
        _run_stages(config, runner)
    return runner.reports


def _write_bundle(config: Config, artifacts: Artifacts, output: Path, scratch: Path) -> Bundle:
    from infalign.prefix_scorer import load_scorer
    from training.card import write_aligned_card, write_card, write_judge_section, write_scorer_section
    from training.data import REPORT, read_prompts
    from training.evaluation import report
    from training.figures import flatten_estimates
    from training.judged import read_judge_record
    from training.models import is_adapter
    from training.reward_model import accuracy_figures, read_accuracy

    judged = read_judge_record(artifacts.judged) if config.validation_judge else None
    accuracy, data_report = read_accuracy(artifacts.reward.parent), _read(artifacts.data / REPORT)
    if config.ctrl:
        solution = _read(artifacts.policy.parent / "solved.json")
        if config.evaluation:
            evaluation = artifacts.evaluation
            figures = _read(evaluation / report.SELECTION)
            figures_text = (evaluation / report.TEXT).read_text(encoding="utf-8")
        else:  # the prompts alone, for whoever measures the policy later
            evaluation, kl = scratch, Estimate(**solution["kl"])  # an interval takes several validation prompts
            report.write_prompts(evaluation, read_prompts(artifacts.data, "test"))
            report.write_prompts(evaluation, read_prompts(artifacts.data, "validation"), report.VALIDATION)
            figures, figures_text = flatten_estimates({"kl": kl}), None
        alignment = Alignment(
            procedure=config.procedure,
            transformation=config.transformation,
            beta=solution["beta"],
            measured=figures | accuracy_figures(accuracy),
            judged=judged,
        )
        policy = NewPolicy(artifacts.policy, evaluation, is_adapter(artifacts.policy), alignment)
        card = write_aligned_card(config, solution, data_report, accuracy, figures_text)
    else:
        policy = NewPolicy(alignment=Alignment(measured=accuracy_figures(accuracy), judged=judged))
        card = write_card(config, data_report, accuracy)
    parts = {"reference": artifacts.reference, "reward": artifacts.reward, "calibration": artifacts.calibration}
    if config.scorer:
        parts["scorer"] = artifacts.scorer
        card += write_scorer_section(load_scorer(artifacts.scorer)[1])
    if judged:
        card += write_judge_section(config.policy_name, judged)
    return write_bundle(
        output,
        parts,
        {config.policy_name: policy},
        card,
        name=config.policy_name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        origins=list_origins(config),
        sampling=config.law,
        libraries={library: version(library) for library in LIBRARIES},
    )


def _check(config: Config) -> None:
    """Check, before the first stage runs, that no stage will refuse the config.

    Raises:
        InvalidValue: A stage would refuse it.
        NotConverged: The optimal transformation was not found.
    """
    from infalign.parsing import parse_mixture
    from training import workers

    workers.check_rollouts(config.rollouts)
    if not config.ctrl:
        return
    workers.check_engine("ctrl.engine", config.ctrl.engine)
    with quick_imports():
        from training import ctrl
        from training.evaluation.figures import check_draws, count_draws, procedures_of

    ctrl.make_transformation(config.procedure, config.transformation, config.ctrl.target_kl)
    procedures = procedures_of(parse_mixture(config.procedure))
    if config.evaluation and config.evaluation.draws:
        check_draws(config.evaluation.draws, procedures, "evaluation.draws")
    elif config.evaluation:
        for procedure in procedures:
            count_draws(procedure)


def _check_processes(config: Config, runner: Runner) -> None:
    """Check that the solver can run in these processes, if it will.

    Raises:
        InvalidValue: It cannot.
    """
    if config.ctrl is None or config.ctrl.solver != "ctrl":
        return
    try:
        processes.check_ctrl(config.ctrl.prompts)
    except InvalidValue:
        if any(report.name == "ctrl" and not report.reused for report in _plan(config, runner.dry_copy())):
            raise


def _check_splits(config: Config, data: Path) -> None:
    """Check that a run that trains a policy or a prefix scorer has prompts to train and to measure it on.

    Raises:
        InvalidValue: A split is empty.
    """
    from infalign.overoptimisation import LEAST_PROMPTS
    from training.lengths import REPORT

    report = _read(data / REPORT)
    counts = {split: report[f"{split}_prompts"] for split in ("train", "validation", "test")}
    if config.ctrl and not all(counts.values()):
        given = ", ".join(f"{count} {split}" for split, count in counts.items())
        raise InvalidValue("data", given, "prompts in each split; give at least 8 that are short enough, or held_out")
    if config.scorer and not (counts["train"] and counts["validation"]):
        given = f"{counts['train']} train, {counts['validation']} validation"
        raise InvalidValue("scorer", given, "a run with train and validation prompts; data.prompts.held_out gives some")
    if config.judge and counts["validation"] < LEAST_PROMPTS:
        accepted = f"at least {LEAST_PROMPTS} validation prompts for judge, a third of the prompts held out"
        raise InvalidValue("data", counts["validation"], accepted)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
