"""Rules for when to stop drawing candidates: adaptive N on the quantile scale.

A rule draws at most ``procedure.n`` candidates. It stops as soon as the best candidate so far (the worst, for
worst-of-n) is good enough. Every rule is a threshold on the quantile of that candidate, which is either exact or
estimated from its rank among K anchors. So the expected number of draws and the expected quantile have closed forms.
Candidates are drawn one by one, or in waves (:mod:`infalign.waves`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv

from infalign.arrays import Floats
from infalign.calibration import Calibration
from infalign.errors import InvalidValue
from infalign.procedures import BestOfN, FixedN, WorstOfN
from infalign.waves import anchor_moments, cut_waves, expect, wave_size


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
        return np.size(rewards) >= self.procedure.n or self.reaches(rewards, calibration)

    def reaches(self, rewards: ArrayLike, calibration: Calibration) -> bool:
        """Decide if one of the candidates so far is good enough, whatever their number.

        Args:
            rewards: Rewards of the candidates drawn so far.
            calibration: Calibration of the prompt.

        Raises:
            InvalidValue: A reward is NaN or infinite.
        """
        ranks = calibration.rank(rewards)
        good = ranks if self._selects_best else calibration.samples - ranks
        return bool(np.any(good >= self.rank_threshold(calibration.samples)))

    def stop_quantile(self, calibration: Calibration) -> float | None:
        """Compute the estimated quantile at which the rule stops.

        Args:
            calibration: Calibration of the prompt.

        Returns:
            The lowest quantile that is good enough (the highest, for worst-of-n); None if no rank among K anchors is.
        """
        samples = calibration.samples
        rank = self.rank_threshold(samples)
        if rank > samples:
            return None
        return float(calibration.estimator.quantile(rank if self._selects_best else samples - rank, samples))

    def waves(self, samples: int | None = None, law: Floats | None = None, least: int = 1) -> tuple[int, ...]:
        """Compute the sizes of the waves to draw in.

        A wave is as small as it can be while it reaches the threshold with probability 1/2. If no rank among the
        anchors is good enough, there is one wave of all n.

        Args:
            samples: K, the number of anchors; None for exact calibration.
            law: (K' + 1,) probability of each rank of one draw among K' anchors, such as
                :func:`infalign.drift.rank_law`. By default that of the reference, whose ranks are equally likely.
            least: The smallest size.

        Returns:
            Sizes that add up to n. All but the last are equal.

        Examples:
            >>> from infalign import BestOfN, Target
            >>> Target(BestOfN(16), 0.9).waves()
            (7, 7, 2)
            >>> Target(BestOfN(16), 0.995).waves(samples=32)
            (16,)
        """
        n = self.procedure.n
        size = max(wave_size(self.chance(samples, law), n), least)
        return cut_waves(n, size)

    def mean_threshold(self, samples: int | None = None) -> float:
        """Compute the mean true quantile at which the rule stops, counted so that 1 is best for the procedure.

        Args:
            samples: K, the number of anchors; None for exact calibration.

        Returns:
            The mean quantile r/(K + 1) of the r-th of K anchors; 1 if no rank is good enough.
        """
        return self.threshold if samples is None else self.rank_threshold(samples) / (samples + 1)

    def chance(self, samples: int | None = None, law: Floats | None = None) -> float:
        """Compute the probability that one draw reaches the threshold.

        Args:
            samples: K, the number of anchors; None for exact calibration.
            law: (K' + 1,) probability of each rank of one draw, as in :meth:`waves`.

        Examples:
            >>> from infalign import BestOfN, Target
            >>> round(Target(BestOfN(16), 0.9).chance(), 3)
            0.1
        """
        share = self.mean_threshold(samples)
        if law is None:
            return 1 - share
        below = np.concatenate([[0.0], np.cumsum(law if self._selects_best else law[::-1])])
        return 1 - float(np.interp(share * law.size, np.arange(below.size), below))

    def expectation(self, samples: int | None = None, waves: Sequence[int] | None = None) -> Expectation:
        """Compute the mean number of draws and the mean quantile of the selected candidate.

        Args:
            samples: K, the number of anchors; None for exact calibration.
            waves: Sizes of the waves, which add up to n. By default the candidates are drawn one by one.

        Returns:
            Both means, for continuous rewards.

        Raises:
            InvalidValue: The sizes are not positive, or do not add up to n.
        """
        n = self.procedure.n
        if samples is None:
            moments = np.power(self.threshold, np.arange(n + 2.0))
        else:
            moments = anchor_moments(self.rank_threshold(samples), samples, n)
        goodness, draws = expect(moments, [1] * n if waves is None else waves)
        return Expectation(float(draws), float(goodness if self._selects_best else 1 - goodness))

    @property
    def _selects_best(self) -> bool:
        return isinstance(self.procedure, BestOfN)


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
        return self.quantile if self._selects_best else 1 - self.quantile

    def rank_threshold(self, samples: int) -> int:
        """Compute the lowest rank whose estimate or bound reaches the target."""
        ranks = np.arange(samples + 1)
        if self.bound == "credible":
            return int(np.sum(betaincinv(ranks + 0.5, samples - ranks + 0.5, 1 - self.level) < self.threshold))
        return int(np.sum((ranks + 0.5) / (samples + 1) < self.threshold))

    def miss_probability(self, reward: float, calibration: Calibration) -> float:
        """Compute the probability that the true quantile of a candidate misses the target.

        The posterior is Beta(r + ½, K − r + ½) for the rank r. It is that of a single draw. For a candidate at which
        the rule has stopped it is an upper bound on average, because prompts with high anchors do not count less.

        Args:
            reward: Reward of the candidate.
            calibration: Calibration of the prompt.

        Returns:
            The probability, from 0 to 1.

        Raises:
            InvalidValue: The reward is NaN or infinite.
        """
        rank, samples = float(calibration.rank(reward)), calibration.samples
        below = float(betainc(rank + 0.5, samples - rank + 0.5, self.quantile))
        return below if self._selects_best else 1 - below
