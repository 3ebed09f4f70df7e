"""The cost rule: stop when another draw costs more than it is expected to gain.

It is Weitzman's (1979), brought to the rewards of language models by Kalayci et al. (arXiv 2510.01394).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infalign.errors import InvalidValue
from infalign.stopping import StoppingRule
from infalign.waves import anchor_moments, expect


@dataclass(frozen=True)
class Cost(StoppingRule):
    """Stop where E[quantile] − ``cost`` · E[draws] is largest.

    With exact quantiles, one more draw improves q by (1 − q)²/2 on average, so the threshold is 1 − √(2 cost) for any
    cap. With K anchors, the rule stops at the best rank by the closed forms of :meth:`StoppingRule.expectation`.
    (Looking one draw ahead through the posterior of q ignores that all draws meet the same anchors, and draws far too
    many.)

    Args:
        procedure: Best-of-n or worst-of-n.
        cost: Price of one draw in quantile, between 0 and 0.5.

    Raises:
        InvalidValue: An argument is out of range.

    Examples:
        >>> from infalign import BestOfN, Cost
        >>> rule = Cost(BestOfN(64), 0.02)
        >>> rule.threshold
        0.8
        >>> [round(mean, 3) for mean in rule.expectation()]
        [5.0, 0.9]
    """

    cost: float

    def __post_init__(self) -> None:
        StoppingRule.__post_init__(self)
        if not 0 < self.cost < 0.5:
            raise InvalidValue("cost", self.cost, "a number between 0 and 0.5, in quantile per draw")

    @property
    def threshold(self) -> float:
        """1 − √(2 cost)."""
        return 1 - math.sqrt(2 * self.cost)

    def rank_threshold(self, samples: int) -> int:
        """Compute the rank with the largest E[quantile] − ``cost`` · E[draws]."""
        return _cheapest(self.procedure.n, self.cost, samples)


@lru_cache(maxsize=1024)
def _cheapest(n: int, cost: float, samples: int) -> int:
    # The best rank is near that of the exact threshold; the anchor there has a standard deviation below √K/2 ranks.
    middle, width = (1 - math.sqrt(2 * cost)) * (samples + 1), 4 * math.sqrt(samples) + 4
    ranks = np.arange(max(0, math.floor(middle - width)), min(samples + 1, math.ceil(middle + width)) + 1)
    best, draws = expect(anchor_moments(ranks, samples, n), [1] * n)
    return int(ranks[np.argmax(best - cost * draws)])
