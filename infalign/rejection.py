"""Early rejection: which candidates are not worth finishing.

Candidates are drawn side by side. Every few tokens, at a checkpoint, the laws of those that are not finished say how
good each may become. There are two rules. Best-of-n rejects what will hardly be the best of all. A stopping rule
rejects what will hardly be good enough to stop at, since a fresh candidate in its place is more likely to be.

Everything is counted so that 1 is the best quantile for the procedure. For worst-of-n, laws are mirrored
(:attr:`infalign.QuantileLaw.mirror`), and a quantile q becomes 1 − q.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from infalign.errors import InvalidValue
from infalign.quantile_law import Mask, QuantileLaw


class RejectionRule(ABC):
    """A rule that says which candidates are not worth finishing.

    Examples:
        >>> from infalign import Rejection, RejectionRule
        >>> isinstance(Rejection(0.05), RejectionRule)
        True
    """

    @abstractmethod
    def reject(
        self, law: QuantileLaw, best: ArrayLike = 0.0, pending: Mask | None = None, fresh: ArrayLike = 0
    ) -> Mask:
        """Decide which candidates to reject.

        Args:
            law: (..., n, B) laws of the candidates, as the scorer of the reference predicts them.
            best: (...,) highest quantile of the finished candidates; 0 where none is finished.
            pending: (..., n) which candidates are still drawn; all if left out.
            fresh: (...,) how many candidates can still be started.

        Returns:
            (..., n) which candidates are rejected. One candidate is always left: finished, pending or fresh.
        """


@dataclass(frozen=True)
class Rejection(RejectionRule):
    """Rejects candidates that will hardly be the best.

    Args:
        threshold: Least probability of becoming the best that a candidate needs. 0 rejects none.
        policy: (B,) law of a candidate that is not begun, by which laws of the reference's responses are tilted
            (:meth:`infalign.QuantileLaw.tilt`); None for candidates of the reference.

    Raises:
        InvalidValue: The threshold is not from 0 to 1.

    Examples:
        >>> from infalign import QuantileLaw, Rejection
        >>> law = QuantileLaw([[0.9, 0.1, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.3, 0.3]])
        >>> Rejection(0.05).reject(law).tolist()
        [True, False, False]
        >>> Rejection(0.05).reject(law, best=0.99).tolist()
        [True, True, True]
    """

    threshold: float
    policy: QuantileLaw | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_share("threshold", self.threshold)

    def reject(
        self, law: QuantileLaw, best: ArrayLike = 0.0, pending: Mask | None = None, fresh: ArrayLike = 0
    ) -> Mask:
        """Reject candidates by their probability of becoming the best of those that are started.

        If none is finished, the likeliest best one is kept. See :meth:`RejectionRule.reject`.
        """
        drawn = _all(law) if pending is None else pending
        law = law.tilt(self.policy) if self.policy else law
        chances = law.best_probabilities(best, drawn)
        return np.asarray(drawn & (chances < self.threshold) & ~_likeliest(chances, drawn, np.asarray(best) <= 0))


@dataclass(frozen=True)
class TargetRejection(RejectionRule):
    """Rejects candidates that will hardly be good enough to stop at.

    Args:
        target: Quantile that is good enough, from 0 to 1.
        least: Least probability of reaching the target that a candidate needs: a share of that of a fresh candidate.
            0 rejects none.
        policy: (B,) law of a candidate that is not begun, by which laws of the reference's responses are tilted
            (:meth:`infalign.QuantileLaw.tilt`); None for candidates of the reference.

    Raises:
        InvalidValue: An argument is not from 0 to 1.

    Examples:
        >>> from infalign import QuantileLaw, TargetRejection
        >>> law = QuantileLaw([[0.9, 0.1, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.3, 0.0]])
        >>> rule = TargetRejection(0.75, least=0.1)
        >>> rule.reject(law, fresh=3).tolist()
        [True, False, True]
        >>> rule.reject(QuantileLaw([[0.9, 0.1, 0.0, 0.0], [0.2, 0.5, 0.3, 0.0]])).tolist()
        [True, False]
    """

    target: float
    least: float
    policy: QuantileLaw | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_share("target", self.target)
        _check_share("least", self.least)

    def reject(
        self, law: QuantileLaw, best: ArrayLike = 0.0, pending: Mask | None = None, fresh: ArrayLike = 0
    ) -> Mask:
        """Reject candidates by their probability of reaching the target.

        If none is finished, and none can be started, the likeliest one is kept; of several, the one with the highest
        mean. See :meth:`RejectionRule.reject`.
        """
        drawn = _all(law) if pending is None else pending
        law = law.tilt(self.policy) if self.policy else law
        chances = law.exceeds(self.target)
        alone = (np.asarray(best) <= 0) & (np.asarray(fresh) <= 0)
        return np.asarray(drawn & (chances < self.least) & ~_likeliest(chances + TIE * law.mean, drawn, alone))


TIE = 1e-9
"""Weight of the mean where chances are equal."""


def _all(law: QuantileLaw) -> Mask:
    return np.ones(law.probabilities.shape[:-1], dtype=bool)


def _likeliest(chances: ArrayLike, drawn: Mask, alone: Mask) -> Mask:
    """Which candidates are the likeliest of those drawn, where nothing else is left."""
    values = np.where(drawn, chances, -1.0)
    return np.asarray((values == values.max(axis=-1, keepdims=True)) & alone[..., None])


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidValue(name, value, "a number from 0 to 1")
