"""Stage ``scorer``: the prefix scorer."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class MakePrefixScorer(Stage):
    """Trains a prefix scorer on the rollouts of training prompts, and measures it on validation prompts."""

    name = "scorer"
    build = "training.prefix_scorer:make_prefix_scorer"
    purpose = "predicts the quantile of a response before it is finished"
    resumes = True

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "data": artifacts.data,
            "rollouts": artifacts.rollouts,
            "reference": artifacts.reference,
            "reward": artifacts.reward,
            "calibration": artifacts.calibration,
            "law": config.law,
            "config": config.scorer,
            "compute": config.compute,
            "seed": derive_seed(config.seed, "scorer"),
        }

    def is_part_of(self, config: Config) -> bool:
        """Say whether the run has a prefix scorer."""
        return config.scorer is not None

    def is_parallel(self, config: Config) -> bool:
        """All processes train."""
        return True
