"""Stage ``judge``: how large N may be."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class AskJudge(Stage):
    """Finds, on validation prompts, the largest N up to which the judge supports the selection by the reward."""

    name = "judge"
    build = "training.judged:write_judge_record"
    purpose = "the largest N that the judge supports"

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from. Without a policy, the rollouts have its candidates already."""
        judge = config.validation_judge
        if judge is None:
            raise LookupError("a run without a judge has no such stage")
        return {
            "data": artifacts.data,
            "policy": artifacts.policy if config.ctrl else None,
            "reference": artifacts.reference,
            "reward": artifacts.reward,
            "calibration": artifacts.calibration,
            "rollouts": None if config.ctrl else artifacts.rollouts,
            "law": config.law,
            "judge": judge.source,
            "judge_output": judge.output,
            "draws": judge.draws,
            "seed": derive_seed(config.seed, "judge"),
        }

    def is_part_of(self, config: Config) -> bool:
        """Say whether the run has a judge."""
        return config.validation_judge is not None
