"""The training configs of the runs."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from experiments.real.tasks import PARTS, Method, Settings, Task
from infalign.home import home

RESPONSE, PROMPT, CONTEXT = 48, 160, 448
"""Tokens: longest response, longest prompt of a policy, longest prompt and response of a reward model."""
REWARD: dict[str, Any] = {
    "seed": 0,
    "data": {"preferences": {"held_out": 2}},  # all others train; what is measured is measured on other prompts
    "model": {"base": {"positions": CONTEXT, "pad_token": "<|endoftext|>"}},
    "reward": {"train": {"learning_rate": 0.0005, "batch": 32, "epochs": 2, "lora": {"rank": 16, "alpha": 32}}},
    "rollouts": {"samples": 1, "max_tokens": RESPONSE},  # the run ends before them
}
"""Config of a reward model."""
POLICY: dict[str, Any] = {
    "seed": 0,
    "data": {"preferences": {"held_out": 120}},
    "model": {"base": {"positions": PROMPT + RESPONSE, "pad_token": "<|endoftext|>"}},
    "rollouts": {"samples": 32, "max_tokens": RESPONSE},
    "ctrl": {
        "target_kl": 0.5,
        "learning_rate": 0.001,
        "optimiser": "adam",
        "prompts": 24,
        "generations": 8,
        "steps": 64,
        "anneal": 0.7,
        "lora": {"rank": 8, "alpha": 16},
    },
}
"""Config of a policy."""


def inputs(task: Task) -> Path:
    """Return the folder of the files that the runs of a task read."""
    return home() / "real" / task.name


def reward_config(task: Task, part: str, settings: Settings) -> Any:
    """Make the config of the reward model or of the judge."""
    from training.configs import make_config

    values = deepcopy(REWARD) | {"name": f"real-{task.name}-{part}"}
    values["seed"] = PARTS.index(part)
    values["data"]["preferences"]["paths"] = [str(inputs(task) / f"{part}.jsonl")]
    values["model"]["base"]["path"] = settings.model
    return make_config(values, settings.reward_overrides)


def policy_config(task: Task, method: Method, settings: Settings, reward: Path = Path("reward")) -> Any:
    """Make the config of a policy. Before there is a reward model, it is enough for the stage ``data``."""
    from training.configs import make_config

    values = deepcopy(POLICY) | {
        "name": f"real-{task.name}",
        "procedure": task.procedure if method.aligned else "standard",
        "transformation": method.transformation,
        "reward": {"classifiers": [{"path": str(reward), "higher_is": "better", "name": "reward"}]},
    }
    if method.transformation == "gaussian":  # it has no milder form to begin with
        values["ctrl"]["anneal"] = 0
    values["data"]["preferences"]["paths"] = [str(inputs(task) / "policy.jsonl")]
    values["model"]["base"]["path"] = settings.model
    return make_config(values, settings.overrides)
