"""Stage ``ctrl``: the policy, aligned for its decoding procedure by a solver and settled at the target KL."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from infalign.bundle import load_calibration
from infalign.manifest import SamplingLaw
from infalign.procedures import parse_procedure
from infalign.templates import Message
from infalign.transforms import Transformation, parse_transformation
from training import data, processes
from training.config import Compute, Ctrl
from training.models import save_model
from training.sampler import load_pair
from training.scorer import CombinedScorer
from training.solvers import SOLVERS, Task
from training.solvers.settling import settle

SETTLING_DRAWS = 32
"""Per validation prompt."""


def make_policy(
    directory: Path,
    data_directory: Path,
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
) -> None:
    """Align the model in ``reference`` and save the policy into ``directory``/model; see :func:`train_ctrl`."""
    combination = load_calibration(calibration)[0]
    task = Task(
        directory=directory,
        prompts=data.read_prompts(data_directory, "train"),
        rollouts=rollouts,
        reference=reference,
        scorer=CombinedScorer.load(reward, combination, reference),
        combination=combination,
        transformation=objective(procedure, transformation, config.target_kl),
        law=law,
        config=config,
        compute=compute,
        seed=seed if config.seed is None else config.seed,
    )
    train_ctrl(task, data.read_prompts(data_directory, "validation"))


def objective(procedure: str, transformation: str, target_kl: float) -> Transformation:
    """Φ, for a procedure and a KL, from 0 to 1 if it is bounded.

    Raises:
        InvalidValue: it is not accepted.
        NotConverged: ``optimal`` was not found.
    """
    found = parse_transformation(transformation, parse_procedure(procedure), kl=target_kl)
    return found.normalised() if found.span < float("inf") else found


def train_ctrl(task: Task, validation: Sequence[Sequence[Message]]) -> None:
    """Save the policy into the task's directory, and in ``solved.json`` β, α, and the KL it reached."""
    trained = task.directory / "trained"
    beta = trained / "beta.json"  # written last: a killed run that got here settles what it has
    if not beta.is_file():
        found = SOLVERS[task.config.solver](task, trained)
        if processes.is_first():
            beta.write_text(json.dumps(found), encoding="utf-8")
    if not processes.is_first():
        return
    policy, reference = load_pair(trained, task.reference, task.law)
    settled = settle(policy, reference, validation, task.config.target_kl, SETTLING_DRAWS, task.seed)
    save_model(policy.model, policy.tokenizer, task.directory / "model")
    (task.directory / "solved.json").write_text(
        json.dumps({"beta": json.loads(beta.read_text(encoding="utf-8")), **asdict(settled)}, indent=1) + "\n",
        encoding="utf-8",
    )
    shutil.rmtree(trained)
