"""The trainings, as stages of the pipeline."""

from pathlib import Path

from experiments.real.configs import policy_config, reward_config
from experiments.real.tasks import METHODS, Method, Settings, Task
from infalign.home import home


def train_model(task: Task, part: str, settings: Settings) -> Path:
    """Train the reward model or the judge of a task, and return its directory."""
    from training.pipeline import run_stages

    return run_stages(reward_config(task, part, settings), home() / "runs", until="reward").reward


def calibrate(task: Task, reward: Path, settings: Settings) -> None:
    """Draw the rollouts of a task and calibrate its reward: the stages that all policies share."""
    from training.pipeline import run_stages

    run_stages(policy_config(task, METHODS[0], settings, reward), home() / "runs", until="calibrate")


def align(task: Task, method: Method, reward: Path, settings: Settings) -> None:
    """Train the policy of a method."""
    from training.pipeline import run_stages

    run_stages(policy_config(task, method, settings, reward), home() / "runs", until="ctrl")
