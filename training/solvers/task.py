"""The task that every solver gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infalign.arrays import Floats
from infalign.combination import Combination
from infalign.manifest import SamplingLaw
from infalign.mixture import Mixture
from infalign.table import CalibrationTable
from infalign.templates import Message
from infalign.transformation import Transformation
from infalign.transforms import Gaussian
from training.answers import ScoredTexts
from training.config import Compute, Ctrl
from training.scorer import CombinedScorer


@dataclass(frozen=True)
class Task:
    """What a policy is trained for."""

    directory: Path
    """Directory of the stage, for ``metrics.jsonl`` and temporary files of the solver."""
    prompts: Sequence[Sequence[Message]]
    """Training prompts, all of which have a calibration table."""
    rollouts: Path
    """Directory of the stage ``rollouts``."""
    reference: Path
    """Directory of the reference model."""
    scorer: CombinedScorer
    """The reward."""
    combination: Combination
    """Calibration tables of the reward models, and how they are combined."""
    procedure: Mixture
    """What the policy is aligned for: one decoding procedure, or several with weights."""
    transformation: Transformation
    """The transformation Φ."""
    law: SamplingLaw
    """Sampling law of the policy."""
    config: Ctrl
    """How the policy is trained."""
    compute: Compute
    """How the trainer uses the machine."""
    seed: int
    """Seed of the stage."""
    texts: ScoredTexts | None = None
    """Reads the answers that ``scorer`` scores. None scores whole responses, or no new ones."""

    @property
    def table(self) -> CalibrationTable:
        """Calibration table of the rewards that ``scorer`` gives."""
        return self.combination.table

    def values(self, quantiles: Floats, rewards: Floats) -> Floats:
        """Compute what is maximised for each reward.

        It is Φ(C). The transformation ``gaussian`` is a baseline without calibration: it is the reward itself,
        standardised by the mean and deviation of all rewards of the reference.

        Args:
            quantiles: Quantiles C of the rewards.
            rewards: The rewards, of the same shape.

        Returns:
            Values of the same shape.
        """
        if isinstance(self.transformation, Gaussian):
            anchors = self.table.rewards
            return np.asarray((rewards - anchors.mean()) / anchors.std())
        return self.transformation(quantiles)
