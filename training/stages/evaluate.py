"""Stage ``evaluate``: figures of the policy."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class Evaluate(Stage):
    """Measures win rates over the reference on test prompts and KL, beside theory and a judge."""

    name = "evaluate"
    build = "training.evaluate:evaluate_policy"
    purpose = "win rates of the policy over the reference, and its KL"

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        judge = config.validation_judge
        return {
            "data": artifacts.data,
            "policy": artifacts.policy,
            "reference": artifacts.reference,
            "reward": artifacts.reward,
            "calibration": artifacts.calibration,
            "procedure": config.procedure,
            "transformation": config.transformation,
            "law": config.law,
            "config": config.evaluation,
            "samples": config.rollouts.samples,
            "judge": judge and judge.source,
            "judge_output": judge and judge.output,
            "seed": derive_seed(config.seed, "evaluate"),
        }

    def is_part_of(self, config: Config) -> bool:
        """Say whether the run trains a policy and measures it."""
        return config.ctrl is not None and config.evaluation is not None
