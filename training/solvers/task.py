"""What every solver is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infalign.calibration import CalibrationTable
from infalign.combination import Combination
from infalign.manifest import SamplingLaw
from infalign.templates import Message
from infalign.transforms import Gaussian, Transformation
from training.config import Compute, Ctrl
from training.scorer import CombinedScorer

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """One policy to be found."""

    directory: Path
    """For ``metrics.jsonl`` and whatever the solver needs while it works."""
    prompts: Sequence[Sequence[Message]]
    """All of them in the calibration."""
    rollouts: Path
    """The stage's directory: the reference's scored responses to every prompt."""
    reference: Path
    scorer: CombinedScorer
    combination: Combination
    transformation: Transformation
    law: SamplingLaw
    config: Ctrl
    compute: Compute
    seed: int

    @property
    def table(self) -> CalibrationTable:
        """The reference's rewards, as ``scorer`` gives them."""
        return self.combination.table

    def values(self, quantiles: Floats, rewards: Floats) -> Floats:
        """What is to be maximised of each reward: Φ(C), or for ``gaussian`` the reward itself, standardised.

        The latter is the baseline that calibrates nothing: mean and deviation are those of all reference rewards.
        """
        if isinstance(self.transformation, Gaussian):
            anchors = self.table.rewards
            return np.asarray((rewards - anchors.mean()) / anchors.std())
        return self.transformation(quantiles)
