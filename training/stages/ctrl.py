"""Stage ``ctrl``: the policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class AlignPolicy(Stage):
    """Trains the policy: the reference, aligned for its decoding procedure and settled at the target KL."""

    name = "ctrl"
    build = "training.ctrl:make_policy"
    purpose = "the policy: the reference, aligned for its decoding procedure"
    resumes = True

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "data": artifacts.data,
            "rollouts": artifacts.rollouts,
            "reference": artifacts.reference,
            "reward": artifacts.reward,
            "calibration": artifacts.calibration,
            "procedure": config.procedure,
            "transformation": config.transformation,
            "law": config.law,
            "config": config.alignment,
            "compute": config.compute,
            "seed": derive_seed(config.seed if config.alignment.seed is None else config.alignment.seed, "ctrl"),
        }

    def is_part_of(self, config: Config) -> bool:
        """Say whether the run trains a policy."""
        return config.ctrl is not None

    def is_parallel(self, config: Config) -> bool:
        """Say whether the solver trains in all processes, as ctrl and rloo do."""
        return config.alignment.solver != "regression"

    def libraries(self, config: Config) -> Sequence[str]:
        """Return the library that draws."""
        return (config.alignment.engine,)
