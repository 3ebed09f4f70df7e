"""The configuration of a training run.

:class:`Config` is a whole run. Its sections are models of their own: :mod:`~training.config.data` says where the data
comes from, :mod:`~training.config.model` what the reference starts from, :mod:`~training.config.rewards` which rewards
there are, and :mod:`~training.config.stages` how each stage works. :mod:`training.configs` reads a config from YAML.
"""

from training.config.data import FILES, Data, Files, HelpDesk, Pools, Prompts
from training.config.model import Base, Lora, Model, Scratch
from training.config.rewards import (
    Classifier,
    External,
    Function,
    Judge,
    ReferenceJudge,
    RemoteJudge,
    Reward,
    Service,
    TrainedReward,
)
from training.config.run import Config, DataConfig
from training.config.stages import Compute, Ctrl, Evaluation, Optimiser, PrefixScorer, Ray, Rollouts, ValidationJudge

__all__ = [
    "FILES",
    "Base",
    "Classifier",
    "Compute",
    "Config",
    "Ctrl",
    "Data",
    "DataConfig",
    "Evaluation",
    "External",
    "Files",
    "Function",
    "HelpDesk",
    "Judge",
    "Lora",
    "Model",
    "Optimiser",
    "Pools",
    "PrefixScorer",
    "Prompts",
    "Ray",
    "ReferenceJudge",
    "RemoteJudge",
    "Reward",
    "Rollouts",
    "Scratch",
    "Service",
    "TrainedReward",
    "ValidationJudge",
]
