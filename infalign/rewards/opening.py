"""Opens rewards that no model of a bundle computes."""

from collections.abc import Mapping
from pathlib import Path

from infalign.errors import InvalidValue
from infalign.rewards.base import OpenReward
from infalign.rewards.records import (
    ForeignReward,
    FunctionReward,
    JudgeReward,
    ReferenceJudgeReward,
    ServiceReward,
    read_reward,
)


def open_reward(name: str, reward: ForeignReward) -> OpenReward:
    """Make a reward ready to score.

    Args:
        name: Name of the reward, for messages.
        reward: Which reward it is.

    Raises:
        InvalidValue: A function cannot be imported, or the variable of an API key is not set.
    """
    if isinstance(reward, FunctionReward):
        from infalign.rewards.function import Function

        return Function(name, reward)
    if isinstance(reward, ServiceReward):
        from infalign.rewards.service import Service

        return Service(name, reward)
    from infalign.rewards.judge import Judge

    return Judge(name, reward)


def check_trust(rewards: Mapping[str, Path], trust: bool) -> dict[str, ForeignReward]:
    """Read the rewards of a bundle that no model of it computes, and check that the user trusts them.

    A bundle from elsewhere could name any function of this environment, and any address.

    Args:
        rewards: Directory of each reward of the bundle, by its name.
        trust: Whether the user trusts them.

    Returns:
        The functions, services and judges behind servers, by name.

    Raises:
        InvalidValue: There are some, and the user has not said that they are trusted.
    """
    found = {name: read_reward(path) for name, path in rewards.items()}
    records = {name: record for name, record in found.items() if isinstance(record, ForeignReward)}
    if records and not trust:
        parts = [f"{name} ({describe(record)})" for name, record in records.items()]
        raise InvalidValue(
            "--trust-rewards", "nothing", f"--trust-rewards, to run what the bundle names: {', '.join(parts)}"
        )
    return records


def read_reference_judges(rewards: Mapping[str, Path]) -> dict[str, ReferenceJudgeReward]:
    """Read the rewards of a bundle that its reference gives as a judge. They run nothing foreign.

    Args:
        rewards: Directory of each reward of the bundle, by its name.

    Returns:
        These rewards, by name.
    """
    found = {name: read_reward(path) for name, path in rewards.items()}
    return {name: record for name, record in found.items() if isinstance(record, ReferenceJudgeReward)}


def describe(reward: ForeignReward) -> str:
    """Describe a reward in a few words, such as ``function my_rewards:brevity``."""
    if isinstance(reward, FunctionReward):
        return f"function {reward.function}"
    if isinstance(reward, JudgeReward):
        return f"judge {reward.model} at {reward.url}"
    return f"service {reward.url}"
