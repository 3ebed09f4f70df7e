"""The record in ``bundle.json`` of how far a judge supports the selection by the reward."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from infalign.arrays import Floats
from infalign.overoptimisation import Support, find_support
from infalign.procedures import BestOfN, WorstOfN


class JudgeRecord(BaseModel):
    """How far a judge supports the selection by the reward among candidates of a policy.

    Examples:
        >>> import numpy as np
        >>> from infalign import JudgeRecord
        >>> rewards = np.random.default_rng(0).normal(size=(50, 64))
        >>> record = JudgeRecord.find("classifier", rewards, scores=rewards - rewards**2)
        >>> record.support["best-of-n"].n, record.support["best-of-n"].falls
        (3, True)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str = Field(description="the judge: helpdesk, or the name of a classifier's directory")
    prompts: int = Field(ge=1, description="validation prompts")
    draws: int = Field(ge=1, description="candidates of each prompt, drawn from the policy by the sampling law")
    support: dict[Annotated[str, Field(pattern=r"^(best|worst)-of-n$")], Support] = Field(
        description="the largest N, by the family of the procedure"
    )

    @classmethod
    def find(cls, judge: str, rewards: Floats, scores: Floats) -> Self:
        """Find how far a judge supports best-of-n and worst-of-n.

        Args:
            judge: Name of the judge.
            rewards: (P, M) rewards of M candidates of each of P prompts.
            scores: (P, M) scores of the same candidates. Higher is better.

        Raises:
            InvalidValue: A number is not finite, or there are fewer than 20 prompts.
        """
        prompts, draws = rewards.shape
        support = {kind.family: find_support(rewards, scores, kind) for kind in (BestOfN, WorstOfN)}
        return cls(judge=judge, prompts=prompts, draws=draws, support=support)
