"""Rewards that are not classifiers: functions, scoring services, and judges behind an OpenAI-compatible server.

A bundle keeps one as ``reward.json`` in the place of a model (:mod:`infalign.rewards.records`). Whoever scores with it
opens it by :func:`open_reward`. Training and serving share this package, so that a reward means the same in both.
"""

from infalign.rewards.base import OpenReward, RewardFailed
from infalign.rewards.opening import check_trust, open_reward
from infalign.rewards.records import FunctionReward, JudgeReward, Reward, ServiceReward, read_reward, save_reward

__all__ = [
    "FunctionReward",
    "JudgeReward",
    "OpenReward",
    "Reward",
    "RewardFailed",
    "ServiceReward",
    "check_trust",
    "open_reward",
    "read_reward",
    "save_reward",
]
