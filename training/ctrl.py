"""Stage ``ctrl``: the policy, aligned for its decoding procedure by a solver and settled at the target KL."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from infalign.templates import Message
from training.models import save_model
from training.sampler import Sampler
from training.solvers import SOLVERS, Task
from training.solvers.settling import settle

SETTLING_DRAWS = 32
"""Per validation prompt."""


def train_ctrl(task: Task, validation: Sequence[Sequence[Message]]) -> None:
    """Save the policy into the task's directory, and in ``solved.json`` β, α, and the KL it reached."""
    solution = SOLVERS[task.config.solver](task)
    policy = Sampler(solution.model.eval(), solution.tokenizer, task.law)
    reference = Sampler.load(task.reference, task.law)
    settled = settle(policy, reference, validation, task.config.target_kl, SETTLING_DRAWS, task.seed)
    save_model(policy.model, policy.tokenizer, task.directory)
    (task.directory / "solved.json").write_text(
        json.dumps({"beta": solution.beta, **asdict(settled)}, indent=1) + "\n", encoding="utf-8"
    )
