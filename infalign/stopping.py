"""Rules for when to stop drawing candidates: adaptive N on the quantile scale.

A rule draws at most ``procedure.n`` candidates. It stops as soon as the best candidate so far (the worst, for
worst-of-n) is good enough. Every rule is a threshold on the quantile of that candidate, which is either exact or
estimated from its rank among K anchors. So the expected number of draws and the expected quantile have closed forms.
The cost rule is Weitzman's (1979), brought to the rewards of language models by Kalayci et al. (arXiv 2510.01394).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, betaln

from infalign.arrays import Floats
from infalign.calibration import Calibration
from infalign.errors import InvalidValue
from infalign.procedures import BestOfN, FixedN, WorstOfN


class Expectation(NamedTuple):
    """The mean use and result of a rule when the reference is decoded.

    Args:
        draws: Mean number of candidates.
        quantile: Mean true quantile of the selected candidate.
    """

    draws: float
    quantile: float


@dataclass(frozen=True)
class StoppingRule(ABC):
    """A rule that says when a procedure has drawn enough candidates.

    Args:
        procedure: Best-of-n or worst-of-n. Its n is the largest number of candidates.

    Raises:
        InvalidValue: The procedure is another one.

    Examples:
        >>> from infalign import BestOfN, Cost, StoppingRule
        >>> isinstance(Cost(BestOfN(16), 0.01), StoppingRule)
        True
    """

    procedure: FixedN

    def __post_init__(self) -> None:
        if not isinstance(self.procedure, BestOfN | WorstOfN):
            raise InvalidValue("procedure", str(self.procedure), "best-of-N or worst-of-N")

    @property
    @abstractmethod
    def threshold(self) -> float:
        """Quantile to stop at for exact calibration, counted so that 1 is best for the procedure."""

    @abstractmethod
    def rank_threshold(self, samples: int) -> int:
        """Compute the rank among anchors to stop at, counted so that K is best for the procedure.

        Args:
            samples: K, the number of anchors.

        Returns:
            A rank from 0 to K, or K + 1 if no rank is good enough.
        """

    def stops(self, rewards: ArrayLike, calibration: Calibration) -> bool:
        """Decide if the candidates so far are enough.

        Args:
            rewards: Rewards of the candidates drawn so far.
            calibration: Calibration of the prompt.

        Returns:
            True if one of them is good enough, or if there are n of them.

        Raises:
            InvalidValue: A reward is NaN or infinite.
        """
        ranks = calibration.rank(rewards)
        if ranks.size >= self.procedure.n:
            return True
        good = ranks if isinstance(self.procedure, BestOfN) else calibration.samples - ranks
        return bool(np.any(good >= self.rank_threshold(calibration.samples)))

    def expectation(self, samples: int | None = None) -> Expectation:
        """Compute the mean number of draws and the mean quantile of the selected candidate.

        Args:
            samples: K, the number of anchors; None for exact calibration.

        Returns:
            Both means, for continuous rewards.
        """
        n = self.procedure.n
        if samples is None:
            goodness, draws = _expectation(np.power(self.threshold, np.arange(n + 2.0)))
        else:
            goodness, draws = _expectation(_moments(self.rank_threshold(samples), samples, n))
        return Expectation(draws, goodness if isinstance(self.procedure, BestOfN) else 1 - goodness)


def _moments(rank: int, samples: int, n: int) -> Floats:
    """Compute E τ^k for k = 0..n+1, where τ is the rank-th smallest of K anchors and has law Beta(r, K + 1 − r)."""
    k = np.arange(n + 2.0)
    if rank in (0, samples + 1):
        return np.where(k == 0, 1.0, float(rank > 0))
    return np.asarray(np.exp(betaln(rank + k, samples + 1 - rank) - betaln(rank, samples + 1 - rank)))


def _expectation(moments: Floats) -> tuple[float, float]:
    """Compute the expected quantile (1 being best) and draws from E τ^k, k = 0..n+1, for the threshold τ and cap n.

    A rule makes Σ_{k<n} τ^k draws. If it stopped early, the best candidate is uniform above τ; otherwise it is the
    largest of n below τ. The mean is (1 − τ^n)(1 + τ)/2 + τ^n · τ n/(n + 1).
    """
    n = moments.size - 2
    best = (1 + moments[1] - moments[n] - moments[n + 1]) / 2 + moments[n + 1] * n / (n + 1)
    return float(best), float(np.sum(moments[:n]))


@dataclass(frozen=True)
class Fixed(StoppingRule):
    """Always draw n candidates.

    Examples:
        >>> from infalign import BestOfN, Fixed
        >>> Fixed(BestOfN(4)).expectation()
        Expectation(draws=4.0, quantile=0.8)
    """

    @property
    def threshold(self) -> float:
        """1, which no candidate reaches."""
        return 1.0

    def rank_threshold(self, samples: int) -> int:
        """Return K + 1, which no candidate reaches."""
        return samples + 1


@dataclass(frozen=True)
class Target(StoppingRule):
    """Stop at the first candidate whose quantile reaches a target.

    Args:
        procedure: Best-of-n or worst-of-n.
        quantile: The target in (0, 1). Best-of-n stops at this quantile or above, worst-of-n at it or below.
        bound: What must reach the target. ``point`` is the estimate (r + ½)/(K + 1) from the rank r. ``credible`` is
            the bound that the Beta(r + ½, K − r + ½) posterior exceeds with probability ``level``.
        level: Probability of the credible bound.

    Raises:
        InvalidValue: An argument is out of range.

    Examples:
        >>> from infalign import BestOfN, Calibration, Target
        >>> rule = Target(BestOfN(8), 0.75)
        >>> calibration = Calibration([1.0, 2.0, 3.0, 4.0])
        >>> rule.stops([2.5], calibration), rule.stops([2.5, 9.0], calibration)
        (False, True)
    """

    quantile: float
    bound: Literal["point", "credible"] = "point"
    level: float = 0.95

    def __post_init__(self) -> None:
        StoppingRule.__post_init__(self)
        if not 0 < self.quantile < 1:
            raise InvalidValue("quantile", self.quantile, "a number between 0 and 1")
        if not 0 < self.level < 1:
            raise InvalidValue("level", self.level, "a number between 0 and 1")
        if self.bound not in ("point", "credible"):
            raise InvalidValue("bound", self.bound, "point or credible")

    @property
    def threshold(self) -> float:
        """The target, or 1 minus the target for worst-of-n."""
        return self.quantile if isinstance(self.procedure, BestOfN) else 1 - self.quantile

    def rank_threshold(self, samples: int) -> int:
        """Compute the lowest rank whose estimate or bound reaches the target."""
        ranks = np.arange(samples + 1)
        if self.bound == "credible":
            return int(np.sum(betaincinv(ranks + 0.5, samples - ranks + 0.5, 1 - self.level) < self.threshold))
        return int(np.sum((ranks + 0.5) / (samples + 1) < self.threshold))


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
    ranks = range(samples + 2)
    gains = [best - cost * draws for best, draws in (_expectation(_moments(rank, samples, n)) for rank in ranks)]
    return int(np.argmax(gains))
