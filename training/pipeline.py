"""The pipeline: data → sft → reward → rollouts → calibrate → ctrl → evaluate → bundle.

What a stage is, and how it is kept, says :mod:`training.stages`; a plan goes through the same stages and builds none.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infalign.bundle import Bundle, SamplingLaw, load_calibration, write_bundle
from infalign.calibration import CalibrationTable
from infalign.errors import InvalidValue
from infalign.procedures import Procedure, parse_procedure
from infalign.transforms import parse_transformation
from training import (
    calibrate,
    ctrl,
    data,
    evaluation,
    judges,
    models,
    optimisers,
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
from training.data import comparisons, corpus, helpdesk, judge, rows
from training.evaluation import draws as evaluation_draws
from training.evaluation import figures as evaluation_figures
from training.evaluation import report
from training.solvers import regression, rloo, settling, task
from training.stages import LIBRARIES, StageReport, Stages

FEWEST_DRAWS, MOST_DRAWS = 64, 4096
"""Per prompt and model when evaluating."""


@dataclass(frozen=True)
class Parts:
    """The directories that a bundle is made from."""

    data: Path
    reference: Path
    reward: Path
    calibration: Path
    policy: Path
    measured: Path


def plan(config: Config, runs: Path) -> list[StageReport]:
    """Every stage of a run, and whether it is already done; nothing is made."""
    stages = Stages(runs / config.name, dry=True)
    _run(config, stages)
    return stages.reports


def train(config: Config, runs: Path, output: Path) -> tuple[Bundle, list[StageReport]]:
    """Run every stage that is not already done and write the bundle at ``output``."""
    stages = Stages(runs / config.name)
    parts = _run(config, stages)
    started = time.monotonic()
    figures = _read(parts.measured / report.MEASURED)
    accuracy = _read(parts.reward / "accuracy.json")
    figures |= {"reward_accuracy": accuracy["value"]}
    figures |= {f"reward_accuracy_{end}": accuracy[end] for end in ("low", "high") if accuracy[end] == accuracy[end]}
    solved = _read(parts.policy / "solved.json")
    bundle = write_bundle(
        output,
        {
            "policy": parts.policy / "model",
            "reference": parts.reference / "model",
            "reward": parts.reward / "model",
            "calibration": parts.calibration,
            "evaluation": parts.measured,
        },
        model_card(
            config,
            solved,
            _read(parts.data / data.REPORT),
            accuracy,
            (parts.measured / report.TEXT).read_text(encoding="utf-8"),
        ),
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        procedure=config.procedure,
        transformation=config.transformation,
        beta=solved["beta"],
        sampling=SamplingLaw(max_tokens=config.rollouts.max_tokens),
        measured=figures,
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
    draws = max(map(enough_draws, procedures))
    transformation = parse_transformation(config.transformation, procedure, kl=config.ctrl.target_kl)
    if transformation.span < float("inf"):
        transformation = transformation.normalised()

    written = stages.run(
        "data",
        lambda to: data.write_data(to, config),
        (data, rows, helpdesk, comparisons, corpus, judge, tokenizer),
        config.data.model_dump(),
        _digests(config),
        config.model.vocabulary,
        config.model.positions,
        config.rollouts.max_tokens,
        seed,
    )
    reference = stages.run(
        "sft",
        lambda to: sft.train_sft(to, written, config.model, config.sft, seed),
        (sft, models, optimisers, runtime),
        config.model.model_dump(),
        config.sft.model_dump(),
        seed,
        written,
    )
    reward = stages.run(
        "reward",
        lambda to: reward_model.train_reward_model(to, written, reference / "model", config.reward, seed),
        (reward_model, models, optimisers, scorer, runtime),
        config.reward.model_dump(),
        seed,
        written,
        reference,
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
        lambda to: calibrate.write_calibration(to, drawn, reference / "model", reward / "model", law),
        (calibrate,),
        law.model_dump(),
        drawn,
        reference,
        reward,
    )

    @cache
    def judged_by() -> scorer.Scorer:
        return scorer.Scorer.load(reward / "model")

    @cache
    def table() -> CalibrationTable:
        return load_calibration(calibration)[0]

    def align(to: Path) -> None:
        asked = solvers.Task(
            directory=to,
            prompts=data.read_prompts(written, "train"),
            rollouts=drawn,
            reference=reference / "model",
            scorer=judged_by(),
            table=table(),
            transformation=transformation,
            law=law,
            config=config.ctrl,
            seed=seed if config.ctrl.seed is None else config.ctrl.seed,
        )
        ctrl.train_ctrl(asked, data.read_prompts(written, "validation"))

    policy = stages.run(
        "ctrl",
        align,
        (ctrl, rloo, regression, task, settling, models, optimisers, sampler, scorer, runtime),
        config.ctrl.model_dump(),
        config.procedure,
        config.transformation,
        law.model_dump(),
        seed,
        written,
        reference,
        reward,
        calibration,
    )

    def measure(to: Path) -> None:
        prompts = data.read_prompts(written, "test")
        sampled = evaluation.collect(
            sampler.Sampler.load(policy / "model", law),
            sampler.Sampler.load(reference / "model", law),
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


def _digests(config: Config) -> list[str]:
    """SHA-256 of every data file: another file under the same name is other data.

    Raises:
        InvalidValue: there is no such file.
    """
    if config.data.helpdesk:
        return []
    found = []
    for path in map(Path, config.data.comparisons[1].paths):
        if not path.is_file():
            raise InvalidValue("data", str(path), "a file of JSON lines, .jsonl or .jsonl.gz")
        found.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def enough_draws(procedure: Procedure) -> int:
    """Draws per prompt that the estimates of ``procedure`` can be made from.

    Raises:
        InvalidValue: they would be more than the evaluation draws.
    """
    draws = FEWEST_DRAWS
    while not evaluation_figures.enough(draws, procedure):
        draws *= 2
        if draws > MOST_DRAWS:
            raise InvalidValue("procedure", str(procedure), f"one that {MOST_DRAWS} draws are enough for")
    return draws
