"""Decoding procedures: how the answer is selected from N independent candidates.

Everything is in quantile space. The quantile u of a candidate is that of its reward among the responses of the
reference to the same prompt, so that a candidate drawn from the reference has a uniform u.
Source: InfAlign, arXiv 2412.19792, sections 3 and 4 (calibrated inference-time procedures).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from infalign.arrays import Floats
from infalign.errors import InvalidValue


class Procedure(ABC):
    """A procedure that draws candidates and selects one by its rank among them.

    If the quantile of each candidate has the distribution function F, the quantile of the selected candidate has the
    distribution function G(F). The theory needs only G and its density g.

    Examples:
        >>> from infalign import BestOfN, Procedure
        >>> isinstance(BestOfN(4), Procedure)
        True
    """

    family: ClassVar[str]
    """Name of the procedure without its N, such as ``best-of-n``."""

    @abstractmethod
    def density(self, u: ArrayLike) -> Floats:
        """Compute g(u), the density of the selected quantile when the reference is decoded.

        Args:
            u: Quantiles in [0, 1], of any shape.

        Returns:
            g, in the shape of ``u``.
        """

    @abstractmethod
    def cumulative(self, u: ArrayLike) -> Floats:
        """Compute G(u) = ∫_0^u g, the distribution function of the selected quantile when the reference is decoded.

        Args:
            u: Quantiles in [0, 1], of any shape.

        Returns:
            G, in the shape of ``u``.
        """

    @property
    @abstractmethod
    def expected_quantile(self) -> float:
        """Mean selected quantile when the reference is decoded: ∫ u g(u) du."""

    @property
    @abstractmethod
    def kl_bound(self) -> float:
        """KL divergence in nats of the decoded reference from the reference: ∫ g log g du.

        It is exact for continuous rewards and an upper bound with ties (Beirami et al., arXiv 2401.01879).
        """

    @abstractmethod
    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Order candidates by preference.

        Args:
            rewards: (N,) rewards of the candidates, in the order they were drawn.

        Returns:
            (N,) indices, the selected candidate first. Candidates of equal reward keep their order.
        """

    @abstractmethod
    def order_weights(self, m: int) -> Floats:
        """Compute how often each of m samples is selected from a random subset of them.

        These are the weights of the unbiased estimate from m samples.

        Args:
            m: Number of samples.

        Returns:
            (m,) probabilities, that of the smallest sample first. NaN if the procedure draws more than m candidates.
        """


@dataclass(frozen=True, slots=True)
class FixedN(Procedure):
    """A procedure that always draws the same number of candidates.

    Args:
        n: Number of candidates.

    Raises:
        InvalidValue: ``n`` is below 1.

    Examples:
        >>> from infalign import FixedN, parse_procedure
        >>> [isinstance(parse_procedure(text), FixedN) for text in ("worst-of-2", "best-of-poisson(3)")]
        [True, False]
    """

    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidValue("n", self.n, "a whole number of at least 1")

    @property
    def kl_bound(self) -> float:
        """KL bound log N − (N−1)/N, the same for best-of-N and worst-of-N."""
        return math.log(self.n) - (self.n - 1) / self.n


@dataclass(frozen=True, slots=True)
class Standard(FixedN):
    """Standard decoding: one candidate, which is the answer.

    Examples:
        >>> from infalign import Standard
        >>> str(Standard()), Standard().expected_quantile, Standard().kl_bound
        ('standard', 0.5, 0.0)
    """

    family: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        if self.n != 1:
            raise InvalidValue("n", self.n, "1 for standard decoding")

    def __str__(self) -> str:
        return "standard"

    def density(self, u: ArrayLike) -> Floats:
        """Compute g(u) = 1."""
        return np.ones_like(np.asarray(u, dtype=np.float64))

    def cumulative(self, u: ArrayLike) -> Floats:
        """Compute G(u) = u."""
        return np.array(u, dtype=np.float64)

    @property
    def expected_quantile(self) -> float:
        """Mean selected quantile, 1/2."""
        return 0.5

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Keep the candidates in the order they were drawn."""
        return np.arange(np.size(rewards))

    def order_weights(self, m: int) -> Floats:
        """Give every sample the weight 1/m."""
        return np.full(m, 1 / m)


@dataclass(frozen=True, slots=True)
class BestOfN(FixedN):
    """Best-of-N: the candidate with the highest reward among ``n``.

    Examples:
        >>> from infalign import BestOfN
        >>> procedure = BestOfN(4)
        >>> procedure.expected_quantile
        0.8
        >>> procedure.ranking([0.1, 0.9, 0.5, 0.9]).tolist()
        [1, 3, 2, 0]
    """

    family: ClassVar[str] = "best-of-n"

    def __str__(self) -> str:
        return f"best-of-{self.n}"

    def density(self, u: ArrayLike) -> Floats:
        """Compute g(u) = n u^(n−1)."""
        return np.asarray(self.n * np.asarray(u, dtype=np.float64) ** (self.n - 1))

    def cumulative(self, u: ArrayLike) -> Floats:
        """Compute G(u) = u^n."""
        return np.asarray(np.asarray(u, dtype=np.float64) ** self.n)

    @property
    def expected_quantile(self) -> float:
        """Mean selected quantile, n/(n + 1)."""
        return self.n / (self.n + 1)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Order candidates by falling reward."""
        return np.argsort(-np.asarray(rewards, dtype=np.float64), kind="stable")

    def order_weights(self, m: int) -> Floats:
        """Compute C(i − 1, n − 1) / C(m, n) for the i-th smallest of m samples."""
        if self.n > m:
            return np.full(m, np.nan)
        below = np.arange(m)  # the other n - 1 of the subset are among the i smaller ones
        return np.asarray(np.exp(_log_choose(below, self.n - 1) - _log_choose(m, self.n)))


@dataclass(frozen=True, slots=True)
class WorstOfN(FixedN):
    """Worst-of-N: the candidate with the lowest reward among ``n``, as an attacker would select it.

    Examples:
        >>> from infalign import WorstOfN
        >>> procedure = WorstOfN(4)
        >>> procedure.expected_quantile
        0.2
        >>> procedure.ranking([0.1, 0.9, 0.5, 0.9]).tolist()
        [0, 2, 1, 3]
    """

    family: ClassVar[str] = "worst-of-n"

    def __str__(self) -> str:
        return f"worst-of-{self.n}"

    def density(self, u: ArrayLike) -> Floats:
        """Compute g(u) = n (1−u)^(n−1)."""
        return np.asarray(self.n * (1 - np.asarray(u, dtype=np.float64)) ** (self.n - 1))

    def cumulative(self, u: ArrayLike) -> Floats:
        """Compute G(u) = 1 − (1−u)^n."""
        return np.asarray(1 - (1 - np.asarray(u, dtype=np.float64)) ** self.n)

    @property
    def expected_quantile(self) -> float:
        """Mean selected quantile, 1/(n + 1)."""
        return 1 / (self.n + 1)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Order candidates by rising reward."""
        return np.argsort(np.asarray(rewards, dtype=np.float64), kind="stable")

    def order_weights(self, m: int) -> Floats:
        """Reverse the weights of best-of-n."""
        return BestOfN(self.n).order_weights(m)[::-1]


def _log_choose(n: ArrayLike, k: int) -> Floats:
    """Compute the log of the binomial coefficient, −inf where k > n."""
    n = np.asarray(n, dtype=np.float64)
    room = np.maximum(n - k, 0)
    return np.where(n < k, -np.inf, gammaln(np.maximum(n, k) + 1) - gammaln(k + 1) - gammaln(room + 1))
