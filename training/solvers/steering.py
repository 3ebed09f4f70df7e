"""Steering: sets the KL penalty β while a policy is trained, so that the KL of its draws comes to the target and stays.

A controller of two parts. Momentum carries a policy on for some twenty steps after β has changed, so a slow controller
alone swings: it let the KL of the demo rise to twice its target, and fall to half of it.
"""

import math
from dataclasses import dataclass

MEMORY, GAIN = 0.6, 0.02
"""Weight of the past in the running mean of KL, and largest relative change of the base of β per step."""
LEAST, MOST = 0.7, 3.0
"""Limits of β over its base."""
REST = 1 / 3
"""Share of the steps in which the base does not fall. It would, while the policy has only begun to move."""


@dataclass
class Steering:
    """The controller of β.

    β is at once in proportion to the measured KL: base × KL / target, within limits. The base takes what is then still
    missing, slowly.

    Args:
        target: Target KL in nats per response.
        base: β where the KL is the target; at first that of theory.
        total: Weighted sum of the KL so far.
        weight: Sum of the weights.

    Example:
        >>> steering = Steering(target=0.5, base=0.1)
        >>> steering.update(kl=0.6, progress=0.1), round(steering.base, 4), round(steering.beta, 4)
        (0.6, 0.1004, 0.1205)
    """

    target: float
    base: float
    total: float = 0.0
    weight: float = 0.0

    @property
    def beta(self) -> float:
        """The KL penalty of the next step."""
        mean = self.total / self.weight if self.weight else 0.0
        return self.base * max(LEAST, min(MOST, mean / self.target))

    def update(self, kl: float, progress: float) -> float:
        """Take the KL of one step.

        Args:
            kl: Mean KL of the step's draws, in nats per response.
            progress: Share of the steps that are done.

        Returns:
            The running mean of the KL.
        """
        self.total = MEMORY * self.total + (1 - MEMORY) * kl
        self.weight = MEMORY * self.weight + (1 - MEMORY)
        mean = self.total / self.weight
        if progress > REST or mean > self.target:
            self.base *= math.exp(GAIN * max(-1.0, min(1.0, mean / self.target - 1)))
        return mean
