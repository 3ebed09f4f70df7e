"""Stage ``sft``: the reference."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class MakeReference(Stage):
    """Makes the reference: a model that learns the answers of the data, or a base model as it is."""

    name = "sft"
    build = "training.sft:make_reference"
    purpose = "the reference: the model that the policy is aligned from"
    resumes = True

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "data": artifacts.data,
            "origin": config.model.origin,
            "config": config.sft,
            "compute": config.compute,
            "seed": derive_seed(config.seed, "sft"),
        }

    def is_parallel(self, config: Config) -> bool:
        """Say whether the reference is trained."""
        return config.sft is not None
