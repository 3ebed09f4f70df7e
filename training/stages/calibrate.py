"""Stage ``calibrate``: calibration tables."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.stages.base import Artifacts, Stage


class Calibrate(Stage):
    """Makes calibration tables of the rewards of the rollouts."""

    name = "calibrate"
    build = "training.calibrate:write_calibration"
    purpose = "tables that turn a reward into a quantile"

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "rollouts": artifacts.rollouts,
            "reference": artifacts.reference,
            "reward": artifacts.reward,
            "law": config.law,
            "weights": config.reward.weights,
            "reasoning_parser": config.rollouts.reasoning_parser,
        }
