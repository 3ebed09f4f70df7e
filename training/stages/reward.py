"""Stage ``reward``: the reward models."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class MakeRewardModels(Stage):
    """Makes the reward models: trained on comparisons, classifiers that already exist, or both."""

    name = "reward"
    build = "training.reward_model:make_reward_models"
    purpose = "the reward model: says which of two answers is better"
    resumes = True

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "data": artifacts.data,
            "reference": artifacts.reference if config.reward.train or config.reward.reference_judges else None,
            "config": config.reward,
            "compute": config.compute,
            "seed": derive_seed(config.seed, "reward"),
        }

    def is_parallel(self, config: Config) -> bool:
        """Say whether a reward model is trained."""
        return config.reward.train is not None
