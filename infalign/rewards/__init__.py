"""Rewards that have no weights of their own: functions, services, judges behind servers, the reference as a judge.

A bundle keeps one as ``reward.json`` in the place of a model (:mod:`infalign.rewards.records`). Whoever scores with it
opens it by :func:`open_reward`, or asks the reference by :class:`ReferenceJudge`. Training and serving share this
package, so that a reward means the same in both.
"""

from infalign.rewards.base import OpenReward, RewardFailed
from infalign.rewards.opening import check_trust, open_reward, read_reference_judges
from infalign.rewards.records import (
    ForeignReward,
    FunctionReward,
    JudgeReward,
    ReferenceJudgeReward,
    Reward,
    ServiceReward,
    read_reward,
    save_reward,
)
from infalign.rewards.reference import ReferenceJudge

__all__ = [
    "ForeignReward",
    "FunctionReward",
    "JudgeReward",
    "OpenReward",
    "ReferenceJudge",
    "ReferenceJudgeReward",
    "Reward",
    "RewardFailed",
    "ServiceReward",
    "check_trust",
    "open_reward",
    "read_reference_judges",
    "read_reward",
    "save_reward",
]
