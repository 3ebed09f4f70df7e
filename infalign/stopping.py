"""When to stop drawing candidates: adaptive N on the quantile scale.

A rule draws at most ``procedure.n`` candidates and stops as soon as the best so far (the worst, for worst-of-n) is
good enough. Every rule is a threshold on the best candidate's quantile, known exactly or by its rank among K anchors,
so that expected draws and expected quantile have closed forms. The cost rule is Weitzman's (1979), brought to the
rewards of language models by Kalayci et al. (arXiv 2510.01394).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, betaln

from infalign.calibration import Calibration
from infalign.errors import InvalidValue
from infalign.procedures import BestOfN, FixedN, WorstOfN

Floats = NDArray[np.float64]


class Expectation(NamedTuple):
    """What a rule is expected to use and to reach when the reference is decoded."""

    draws: float
    quantile: float
    """Of the selected candidate, its true quantile."""


@dataclass(frozen=True)
class StoppingRule(ABC):
    """A rule that stops for ``procedure``, best-of-n or worst-of-n, whose n is the cap."""

    procedure: FixedN

    def __post_init__(self) -> None:
        if not isinstance(self.procedure, BestOfN | WorstOfN):
            raise InvalidValue("procedure", str(self.procedure), "best-of-N or worst-of-N")

    @property
    @abstractmethod
    def threshold(self) -> float:
        """The quantile of goodness (1 being best for the procedure) to stop at where quantiles are known exactly."""

    @abstractmethod
    def rank_needed(self, samples: int) -> int:
        """The rank of goodness among K = ``samples`` anchors to stop at, 0..K; K + 1 for never."""

    def stops(self, rewards: ArrayLike, calibration: Calibration) -> bool:
        """Whether the candidates drawn so far are enough."""
        ranks = calibration.rank(rewards)
        if ranks.size >= self.procedure.n:
            return True
        good = ranks if isinstance(self.procedure, BestOfN) else calibration.samples - ranks
        return bool(np.any(good >= self.rank_needed(calibration.samples)))

    def expected(self, samples: int | None = None) -> Expectation:
        """Draws and quantile for exact calibration, or for K = ``samples`` anchors; rewards continuous."""
        n = self.procedure.n
        if samples is None:
            goodness, draws = _expected(np.power(self.threshold, np.arange(n + 2.0)))
        else:
            goodness, draws = _expected(_moments(self.rank_needed(samples), samples, n))
        return Expectation(draws, goodness if isinstance(self.procedure, BestOfN) else 1 - goodness)


def _moments(rank: int, samples: int, n: int) -> Floats:
    """E τ^k for k = 0..n+1, τ being the rank-th smallest of K anchors: Beta(r, K + 1 − r)."""
    k = np.arange(n + 2.0)
    if rank in (0, samples + 1):
        return np.where(k == 0, 1.0, float(rank > 0))
    return np.asarray(np.exp(betaln(rank + k, samples + 1 - rank) - betaln(rank, samples + 1 - rank)))


def _expected(moments: Floats) -> tuple[float, float]:
    """Expected quantile of goodness and draws from E τ^k, k = 0..n+1, τ being the threshold and n the cap.

    Σ_{k<n} τ^k draws; the best is uniform above τ when stopped, else the largest of n below it:
    (1 − τ^n)(1 + τ)/2 + τ^n · τ n/(n + 1).
    """
    n = moments.size - 2
    best = (1 + moments[1] - moments[n] - moments[n + 1]) / 2 + moments[n + 1] * n / (n + 1)
    return float(best), float(np.sum(moments[:n]))


@dataclass(frozen=True)
class Fixed(StoppingRule):
    """Always draw n."""

    @property
    def threshold(self) -> float:
        return 1.0

    def rank_needed(self, samples: int) -> int:
        return samples + 1


@dataclass(frozen=True)
class Target(StoppingRule):
    """Stop at a quantile: of at least ``quantile`` for best-of-n, at most ``quantile`` for worst-of-n.

    ``bound`` says which figure must reach it: ``point``, the calibration's (r + ½)/(K + 1), or ``credible``, the lower
    bound that the Beta(r + ½, K − r + ½) posterior exceeds with probability ``level``.
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
        return self.quantile if isinstance(self.procedure, BestOfN) else 1 - self.quantile

    def rank_needed(self, samples: int) -> int:
        ranks = np.arange(samples + 1)
        if self.bound == "credible":
            return int(np.sum(betaincinv(ranks + 0.5, samples - ranks + 0.5, 1 - self.level) < self.threshold))
        return int(np.sum((ranks + 0.5) / (samples + 1) < self.threshold))


@dataclass(frozen=True)
class Cost(StoppingRule):
    """Stop where E[quantile] − ``cost`` · E[draws] is largest.

    With exact quantiles one more draw improves q by (1 − q)²/2 on average, so that the threshold is 1 − √(2 cost) at
    any cap. With K anchors it is the best rank to stop at, by the closed forms of :meth:`expected`. (Looking one
    draw ahead through the posterior of q forgets that all draws meet the same anchors, and draws far too many.)
    """

    cost: float

    def __post_init__(self) -> None:
        StoppingRule.__post_init__(self)
        if not 0 < self.cost < 0.5:
            raise InvalidValue("cost", self.cost, "a number between 0 and 0.5, in quantile per draw")

    @property
    def threshold(self) -> float:
        return 1 - math.sqrt(2 * self.cost)

    def rank_needed(self, samples: int) -> int:
        return _cheapest(self.procedure.n, self.cost, samples)


@lru_cache(maxsize=1024)
def _cheapest(n: int, cost: float, samples: int) -> int:
    gains = [best - cost * draws for best, draws in (_expected(_moments(r, samples, n)) for r in range(samples + 2))]
    return int(np.argmax(gains))
