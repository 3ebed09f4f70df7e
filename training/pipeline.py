"""The pipeline: data → sft → reward → rollouts → calibrate → ctrl → evaluate → bundle.

What a stage is, and how it is kept, says :mod:`training.stages`; a plan goes through the same stages and builds none.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infalign.bundle import Bundle, load_calibration
from infalign.bundling import NewPolicy, write_bundle
from infalign.combination import Combination
from infalign.manifest import Alignment, SamplingLaw
from infalign.procedures import parse_procedure
from infalign.transforms import parse_transformation
from training import (
    calibrate,
    ctrl,
    data,
    evaluation,
    judges,
    models,
    optimisers,
    processes,
    progress,
    reading,
    reward_model,
    rollouts,
    runtime,
    sampler,
    scorer,
    sft,
    shards,
    solvers,
    tokenizer,
    vllm_sampler,
    workers,
)
from training.card import model_card
from training.config import Config
from training.data import corpus, defects, examples, files, helpdesk, judge, rows
from training.evaluation import draws as evaluation_draws
from training.evaluation import figures as evaluation_figures
from training.evaluation import report
from training.reward_model import accuracy_figures, read_accuracy
from training.solvers import regression, rloo, settling, task
from training.stages import LIBRARIES, StageReport, Stages, Stopped


@dataclass(frozen=True)
class Parts:
    """The directories that a bundle is made from."""

    data: Path
    reference: Path
    reward: Path
    calibration: Path
    policy: Path
    measured: Path


def plan(config: Config, runs: Path, until: str | None = None) -> list[StageReport]:
    """Every stage of a run, and whether it is already done; nothing is made."""
    stages = Stages(runs / config.name, dry=True, until=until)
    with suppress(Stopped):
        _run(config, stages)
    return stages.reports


def train(
    config: Config, runs: Path, output: Path, until: str | None = None
) -> tuple[Bundle | Path, list[StageReport]]:
    """Run every stage that is not already done and write the bundle at ``output``.

    With ``until`` the run stops after the stage of that name, and its directory is what comes back. Of several
    processes the first writes the bundle; in the others the directory of the last stage comes back.
    """
    stages = Stages(runs / config.name, until=until)
    try:
        parts = _run(config, stages)
    except Stopped as stopped:
        return stopped.directory, stages.reports
    if not processes.is_first():
        return parts.measured, stages.reports
    started = time.monotonic()
    solved = _read(parts.policy / "solved.json")
    accuracy = read_accuracy(parts.reward)
    figures = _read(parts.measured / report.MEASURED) | accuracy_figures(accuracy)
    bundle = write_bundle(
        output,
        {"reference": parts.reference / "model", "reward": parts.reward / "model", "calibration": parts.calibration},
        {
            config.served: NewPolicy(
                parts.policy / "model",
                parts.measured,
                models.is_adapter(parts.policy / "model"),
                Alignment(
                    procedure=config.procedure,
                    transformation=config.transformation,
                    beta=solved["beta"],
                    measured=figures,
                ),
            )
        },
        model_card(
            config,
            solved,
            _read(parts.data / data.REPORT),
            accuracy,
            (parts.measured / report.TEXT).read_text(encoding="utf-8"),
        ),
        name=config.served,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sampling=SamplingLaw(max_tokens=config.rollouts.max_tokens),
        libraries={library: version(library) for library in LIBRARIES},
    )
    stages.reports.append(StageReport("bundle", time.monotonic() - started, reused=False))
    return bundle, stages.reports


def run(config: Config, runs: Path) -> Parts:
    """Run every stage but the bundle."""
    return _run(config, Stages(runs / config.name))


def _run(config: Config, stages: Stages) -> Parts:
    workers.check(config.rollouts)
    seed = config.seed
    law = SamplingLaw(max_tokens=config.rollouts.max_tokens)
    procedure = parse_procedure(config.procedure)
    procedures = evaluation_figures.procedures_of(procedure)
    draws = max(map(evaluation_figures.enough_draws, procedures))
    transformation = parse_transformation(config.transformation, procedure, kl=config.ctrl.target_kl)
    if transformation.span < float("inf"):
        transformation = transformation.normalised()

    model, compute = config.model, config.compute
    written = stages.run(
        "data",
        lambda to: data.write_data(to, config),
        (data, files, rows, helpdesk, examples, defects, corpus, judge, tokenizer),
        config.data.model_dump(),
        model.model_dump(),
        [] if config.data.helpdesk else [files.digest(Path(path)) for path in config.data.files.paths],
        _digests(model.base.path, model.base.chat_template) if model.base else [],
        [bool(config.sft), bool(config.reward.train)],
        config.rollouts.max_tokens,
        seed,
    )
    reference = stages.run(
        "sft",
        lambda to: sft.make_reference(to, written, model.origin, config.sft, seed, compute),
        (sft, models, optimisers, runtime, progress),
        model.model_dump(),
        config.sft.model_dump() if config.sft else None,
        compute.precision,
        seed,
        written,
        resumes=True,
        together=config.sft is not None,
    )

    reward = stages.run(
        "reward",
        lambda to: reward_model.make_reward_models(to, written, reference / "model", config.reward, seed, compute),
        (reward_model, models, optimisers, reading, scorer, runtime, progress, tokenizer),
        config.reward.made,
        _digests(*(path for known in config.reward.classifiers for path in (known.path, known.chat_template))),
        compute.precision,
        seed,
        written,
        *([reference] if config.reward.train else []),
        resumes=True,
        together=config.reward.train is not None,
    )
    by_vllm = config.rollouts.engine == "vllm"
    job = shards.Job(reference / "model", reward / "model", law, config.rollouts.engine, config.rollouts.samples, seed)
    drawn = stages.run(
        "rollouts",
        lambda to: rollouts.write_rollouts(
            to, data.read_prompts(written), job, config.rollouts.shard, config.rollouts.ray
        ),
        (rollouts, shards, vllm_sampler if by_vllm else sampler, scorer),
        config.rollouts.drawn,
        vllm_sampler.vllm_version() if by_vllm else None,
        seed,
        written,
        reference,
        reward,
        resumes=True,
    )
    calibration = stages.run(
        "calibrate",
        lambda to: calibrate.write_calibration(
            to, drawn, reference / "model", reward / "model", law, config.reward.weights
        ),
        (calibrate,),
        law.model_dump(),
        config.reward.weights,
        drawn,
        reference,
        reward,
    )

    @cache
    def combination() -> Combination:
        return load_calibration(calibration)[0]

    @cache
    def judged_by() -> scorer.CombinedScorer:
        return scorer.CombinedScorer.load(reward / "model", combination(), reference / "model")

    def align(to: Path) -> None:
        asked = solvers.Task(
            directory=to,
            prompts=data.read_prompts(written, "train"),
            rollouts=drawn,
            reference=reference / "model",
            scorer=judged_by(),
            combination=combination(),
            transformation=transformation,
            law=law,
            config=config.ctrl,
            compute=compute,
            seed=seed if config.ctrl.seed is None else config.ctrl.seed,
        )
        ctrl.train_ctrl(asked, data.read_prompts(written, "validation"))

    policy = stages.run(
        "ctrl",
        align,
        (ctrl, rloo, regression, task, settling, models, optimisers, sampler, scorer, runtime, progress),
        config.ctrl.model_dump(),
        config.procedure,
        config.transformation,
        law.model_dump(),
        compute.precision,
        seed,
        written,
        reference,
        reward,
        calibration,
        resumes=True,
        together=config.ctrl.solver == "rloo",
    )

    def measure(to: Path) -> None:
        prompts = data.read_prompts(written, "test")
        sampled = evaluation.collect(
            *sampler.load_pair(policy / "model", reference / "model", law),
            judged_by(),
            judges.helpdesk if config.data.helpdesk else None,
            prompts,
            draws,
            seed + 1,
        )
        evaluation.save_draws(to, sampled)
        found = evaluation.evaluate(sampled, procedures, config.transformation, procedure, config.rollouts.samples)
        report.write(to, found, prompts, config.rollouts.samples)

    measured = stages.run(
        "evaluate",
        measure,
        (evaluation_draws, evaluation_figures, report, judges, sampler, scorer),
        config.procedure,
        config.transformation,
        seed,
        written,
        policy,
        reference,
        reward,
        calibration,
    )
    return Parts(written, reference, reward, calibration, policy, measured)


def _digests(*paths: str | None) -> list[str]:
    """Of every file or directory that is there; a name on the hub stands for itself."""
    return [files.digest(Path(path)) for path in paths if path and Path(path).exists()]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
