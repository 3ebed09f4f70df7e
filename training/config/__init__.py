"""The configuration of a training run.

:class:`Config` is a whole run. Its sections are models of their own: :mod:`~training.config.data` says where the data
comes from, :mod:`~training.config.model` what the reference starts from, and :mod:`~training.config.stages` how each
stage works. :mod:`training.configs` reads a config from YAML.
"""

from training.config.data import FILES, Data, Files, HelpDesk, Pools, Prompts
from training.config.model import Base, Lora, Model, Scratch
from training.config.run import Config, DataConfig
from training.config.stages import Classifier, Compute, Ctrl, Optimiser, Ray, Reward, Rollouts, TrainedReward

__all__ = [
    "FILES",
    "Base",
    "Classifier",
    "Compute",
    "Config",
    "Ctrl",
    "Data",
    "DataConfig",
    "Files",
    "HelpDesk",
    "Lora",
    "Model",
    "Optimiser",
    "Pools",
    "Prompts",
    "Ray",
    "Reward",
    "Rollouts",
    "Scratch",
    "TrainedReward",
]
