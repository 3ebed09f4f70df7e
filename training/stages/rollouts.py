"""Stage ``rollouts``: scored responses of the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class DrawRollouts(Stage):
    """Draws and scores K responses of the reference to every prompt. Calibration and solvers use them."""

    name = "rollouts"
    build = "training.rollouts:draw_rollouts"
    purpose = "answers of the reference to every prompt, and their rewards"
    resumes = True

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "data": artifacts.data,
            "reference": artifacts.reference,
            "reward": artifacts.reward,
            "config": config.rollouts,
            "seed": derive_seed(config.seed, "rollouts"),
        }

    def libraries(self, config: Config) -> Sequence[str]:
        """Return the library that draws, and vLLM if its parser is used."""
        return (config.rollouts.engine, *(["vllm"] if config.rollouts.reasoning_parser else []))
