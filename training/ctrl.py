"""Stage ``ctrl``: the policy, aligned for its decoding procedure by a solver and settled at the target KL."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict

from infalign.templates import Message
from training import processes
from training.models import save_model
from training.sampler import load_pair
from training.solvers import SOLVERS, Task
from training.solvers.settling import settle

SETTLING_DRAWS = 32
"""Per validation prompt."""


def train_ctrl(task: Task, validation: Sequence[Sequence[Message]]) -> None:
    """Save the policy into the task's directory, and in ``solved.json`` β, α, and the KL it reached."""
    trained = task.directory / "trained"
    beta = trained / "beta.json"  # written last: a killed run that got here settles what it has
    if not beta.is_file():
        found = SOLVERS[task.config.solver](task, trained)
        if not processes.is_first():
            return
        beta.write_text(json.dumps(found), encoding="utf-8")
    policy, reference = load_pair(trained, task.reference, task.law)
    settled = settle(policy, reference, validation, task.config.target_kl, SETTLING_DRAWS, task.seed)
    save_model(policy.model, policy.tokenizer, task.directory / "model")
    (task.directory / "solved.json").write_text(
        json.dumps({"beta": json.loads(beta.read_text(encoding="utf-8")), **asdict(settled)}, indent=1) + "\n",
        encoding="utf-8",
    )
    shutil.rmtree(trained)
