"""Combines rewards and computes their quantiles, with credible intervals."""

from dataclasses import dataclass

import numpy as np

from infalign.calibration import Calibration
from infalign.combination import Combination
from server.protocol.answers import Scored


@dataclass(frozen=True)
class Standing:
    """Computes where rewards for one prompt stand among the reference's rewards.

    Args:
        reward_models: Names of the reward models.
        key: The hash that identifies the prompt in calibrations.
        combination: Combines the rewards of several models.
        calibration: The reference's combined rewards.
    """

    reward_models: tuple[str, ...]
    key: str
    combination: Combination
    calibration: Calibration

    def locate(self, rewards: list[list[float]]) -> list[Scored]:
        """Compute the combined reward and the quantile of each response.

        Args:
            rewards: For each response, the raw reward of each model.
        """
        combined_rewards = self.combination.combine([self.key] * len(rewards), rewards)
        low, high = self.calibration.interval(combined_rewards)
        rows = np.stack([combined_rewards, self.calibration.quantile(combined_rewards), low, high], axis=1).tolist()
        return [
            Scored(
                index=index,
                reward=reward,
                rewards=dict(zip(self.reward_models, raw, strict=True)) if len(raw) > 1 else None,
                quantile=quantile,
                quantile_low=bottom,
                quantile_high=top,
            )
            for index, ((reward, quantile, bottom, top), raw) in enumerate(zip(rows, rewards, strict=True))
        ]
