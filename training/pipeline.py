"""The pipeline: data → sft → reward → rollouts → calibrate → ctrl → evaluate → bundle.

What a stage is, and how it is kept, says :mod:`training.stages`; a plan goes through the same stages and builds none.
Nothing that takes long to import is imported before a stage needs it, so that a plan is quick.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infalign.bundle import Bundle
from infalign.bundling import NewPolicy, write_bundle
from infalign.manifest import Alignment, SamplingLaw
from training import planning, processes
from training.config import Config
from training.stages import StageReport, Stages, Stopped

LIBRARIES = ("infalign", "torch", "transformers", "trl")
"""Whose versions a bundle tells."""


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
    return _plan(config, Stages(runs / config.name, dry=True, until=until))


def _plan(config: Config, stages: Stages) -> list[StageReport]:
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
    from training import data, models
    from training.card import model_card
    from training.evaluation import report
    from training.reward_model import accuracy_figures, read_accuracy

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
    stages.reports.append(StageReport("bundle", time.monotonic() - started, False, bundle.path))
    return bundle, stages.reports


def run(config: Config, runs: Path) -> Parts:
    """Run every stage but the bundle."""
    return _run(config, Stages(runs / config.name))


def _run(config: Config, stages: Stages) -> Parts:
    law = SamplingLaw(max_tokens=config.rollouts.max_tokens)
    seed, compute = config.seed, config.compute
    if not stages.dry:
        _check(config)

    written = stages.run("data", "training.data:write_data", config.for_data)
    if not stages.dry:
        missing = [report.name for report in _plan(config, stages.ahead()) if not report.reused]
        planning.check(config, written, missing)
    reference = stages.run(
        "sft",
        "training.sft:make_reference",
        written,
        config.model.origin,
        config.sft,
        seed,
        compute,
        resumes=True,
        together=config.sft is not None,
    )
    reward = stages.run(
        "reward",
        "training.reward_model:make_reward_models",
        written,
        reference / "model" if config.reward.train else None,
        config.reward,
        seed,
        compute,
        resumes=True,
        together=config.reward.train is not None,
    )
    drawn = stages.run(
        "rollouts",
        "training.rollouts:draw_rollouts",
        written,
        reference / "model",
        reward / "model",
        config.rollouts,
        seed,
        libraries=(config.rollouts.engine,),
        resumes=True,
    )
    calibration = stages.run(
        "calibrate",
        "training.calibrate:write_calibration",
        drawn,
        reference / "model",
        reward / "model",
        law,
        config.reward.weights,
    )
    policy = stages.run(
        "ctrl",
        "training.ctrl:make_policy",
        written,
        drawn,
        reference / "model",
        reward / "model",
        calibration,
        config.procedure,
        config.transformation,
        law,
        config.ctrl,
        compute,
        seed,
        resumes=True,
        together=config.ctrl.solver == "rloo",
    )
    measured = stages.run(
        "evaluate",
        "training.evaluate:measure",
        written,
        policy / "model",
        reference / "model",
        reward / "model",
        calibration,
        config.procedure,
        config.transformation,
        law,
        config.rollouts.samples,
        "helpdesk" if config.data.helpdesk else None,
        seed + 1,
    )
    return Parts(written, reference, reward, calibration, policy, measured)


def _check(config: Config) -> None:
    """See that no stage will refuse the config, before the first is run.

    Raises:
        InvalidValue: one would.
        NotConverged: the optimal transformation was not found.
    """
    from infalign.procedures import parse_procedure
    from training import ctrl, workers
    from training.evaluation.figures import enough_draws, procedures_of

    workers.check(config.rollouts)
    ctrl.objective(config.procedure, config.transformation, config.ctrl.target_kl)
    for procedure in procedures_of(parse_procedure(config.procedure)):
        enough_draws(procedure)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
