"""Stage ``ctrl``: trains the policy with a solver and settles it at the target KL.

CTRL is calibrate and transform RL (InfAlign, arXiv 2412.19792): rewards become quantiles, quantiles are transformed,
and an RL solver maximises the result under a KL penalty.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infalign.manifest import SamplingLaw
from infalign.parsing import parse_mixture, parse_transformation
from infalign.storage import load_calibration
from infalign.templates import Message
from infalign.transformation import Transformation
from training import processes
from training.answers import ScoredTexts
from training.config import Compute, Ctrl
from training.data import read_prompts
from training.models import save_model
from training.sampler import load_pair
from training.scorer import CombinedScorer
from training.seeds import derive_seed
from training.solvers import SOLVERS, Task
from training.solvers.settling import settle

SETTLING_DRAWS = 32
"""Responses per validation prompt that the KL is measured on while the policy settles."""


def make_policy(directory: Path, *, data: Path, **inputs: Any) -> None:
    """Train the policy and save it into ``directory``/model.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        inputs: The other arguments of :func:`make_task`.
    """
    train_policy(make_task(directory, data=data, **inputs), read_prompts(data, "validation"))


def make_task(
    directory: Path,
    *,
    data: Path,
    rollouts: Path,
    reference: Path,
    reward: Path,
    calibration: Path,
    procedure: str,
    transformation: str,
    law: SamplingLaw,
    config: Ctrl,
    compute: Compute,
    seed: int,
) -> Task:
    """Make the task of a solver.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        rollouts: Directory of the stage ``rollouts``.
        reference: Directory of the reference model.
        reward: Directory of the reward model, or of several.
        calibration: Directory of the stage ``calibrate``.
        procedure: Decoding procedure that the policy is aligned for, such as ``best-of-4``, or a mixture of several.
        transformation: The transformation Φ, such as ``exp(10)``.
        law: Sampling law of policy and reference.
        config: How the policy is trained.
        compute: How the trainer uses the machine.
        seed: Seed of the stage.
    """
    combination, record = load_calibration(calibration)
    return Task(
        directory=directory,
        prompts=read_prompts(data, "train"),
        rollouts=rollouts,
        reference=reference,
        scorer=CombinedScorer.load(reward, combination, reference),
        combination=combination,
        procedure=parse_mixture(procedure),
        transformation=make_transformation(procedure, transformation, config.target_kl),
        law=law,
        config=config.model_copy(update={"objective": config.choose_objective(procedure, transformation)}),
        compute=compute,
        seed=seed,
        texts=ScoredTexts.load(record.reasoning_parser, reference) if config.solver != "regression" else None,
    )


def make_transformation(procedure: str, transformation: str, target_kl: float) -> Transformation:
    """Make the transformation Φ that the solver maximises.

    Args:
        procedure: Decoding procedure that the policy is aligned for, or a mixture of several.
        transformation: Name of the transformation, with its parameter if it has one.
        target_kl: KL that the policy is trained for, in nats. ``optimal`` depends on it.

    Returns:
        The transformation. If it is bounded, it is scaled to go from 0 to 1.

    Raises:
        InvalidValue: There is no such transformation or procedure.
        NotConverged: The optimal transformation was not found.
    """
    phi = parse_transformation(transformation, parse_mixture(procedure), kl=target_kl)
    return phi.normalise() if phi.span < float("inf") else phi


def train_policy(task: Task, validation: Sequence[Sequence[Message]]) -> None:
    """Solve a task, settle the policy, and save both the policy and what was reached.

    The policy goes into ``model`` in the task's directory. ``solved.json`` beside it says β, the scale α and the KL.
    A run that is killed after the solver has finished goes on with settling.

    Args:
        task: What the policy is trained for.
        validation: Prompts that the KL is measured on while the policy settles.
    """
    solver_directory = task.directory / "trained"
    beta_file = solver_directory / "beta.json"  # written last: a killed run that got here settles what it has
    if not beta_file.is_file():
        beta = SOLVERS[task.config.solver](task, solver_directory)
        if processes.is_first():
            beta_file.write_text(json.dumps(beta), encoding="utf-8")
    if not processes.is_first():
        return
    policy, reference = load_pair(solver_directory, task.reference, task.law)
    settlement = settle(
        policy, reference, validation, task.config.target_kl, SETTLING_DRAWS, derive_seed(task.seed, "settle")
    )
    save_model(policy.model, policy.tokenizer, task.directory / "model")
    (task.directory / "solved.json").write_text(
        json.dumps({"beta": json.loads(beta_file.read_text(encoding="utf-8")), **asdict(settlement)}, indent=1) + "\n",
        encoding="utf-8",
    )
    shutil.rmtree(solver_directory)
