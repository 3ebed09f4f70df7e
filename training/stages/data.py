"""Stage ``data``: what a run learns from and is measured on."""

from collections.abc import Mapping
from typing import Any

from training.config import Config
from training.seeds import derive_seed
from training.stages.base import Artifacts, Stage


class PrepareData(Stage):
    """Prepares prompts, answers and comparisons, and the tokenizer that reads them."""

    name = "data"
    build = "training.data:write_data"
    purpose = "prompts, answers and comparisons, and the tokenizer"

    def inputs(self, config: Config, artifacts: Artifacts) -> Mapping[str, Any]:
        """Return everything that the stage is made from."""
        return {
            "config": config.for_data,
            "seed": derive_seed(config.seed, "data"),
        }
