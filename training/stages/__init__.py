"""The stages of a run, in the order in which they run.

Each stage is an object in a module of its own. Its ``build`` names the function that does the work. The function is
imported only when the stage runs, so a plan imports none of them.
"""

from training.stages.base import Artifacts, Stage
from training.stages.calibrate import Calibrate
from training.stages.ctrl import AlignPolicy
from training.stages.data import PrepareData
from training.stages.evaluate import Evaluate
from training.stages.judge import AskJudge
from training.stages.reward import MakeRewardModels
from training.stages.rollouts import DrawRollouts
from training.stages.scorer import MakePrefixScorer
from training.stages.sft import MakeReference

__all__ = ["STAGES", "Artifacts", "Stage"]

STAGES: tuple[Stage, ...] = (
    PrepareData(),
    MakeReference(),
    MakeRewardModels(),
    DrawRollouts(),
    Calibrate(),
    MakePrefixScorer(),
    AlignPolicy(),
    Evaluate(),
    AskJudge(),
)
"""All stages in their order."""
