"""Decoding procedures: how an answer is chosen among N independent candidates.

Everything is expressed in quantile space: ``u`` in [0, 1] is the quantile of a candidate's reward among the
reference's responses to the same prompt, so that a candidate of the reference has ``u`` uniform.
Source: InfAlign, arXiv 2412.19792, sections 3 and 4 (calibrated inference-time procedures).
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expi, gammaln, pdtrc

from infalign.errors import InvalidValue

Floats = NDArray[np.float64]
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
ACCEPTED = "standard, best-of-N or worst-of-N with N >= 1, or best-of-poisson(MU) with MU > 0"


class Procedure(ABC):
    """A procedure that draws candidates and selects one by its rank among them.

    A candidate with distribution function F on quantiles is selected with distribution function G(F): all that
    theory needs to know of a procedure is G and its density g.
    """

    family: ClassVar[str]
    """The procedure without its N: standard, best-of-n, worst-of-n."""

    @abstractmethod
    def density(self, u: ArrayLike) -> Floats:
        """g(u): density of the selected quantile when the reference is decoded, same shape as ``u``."""

    @abstractmethod
    def cumulative(self, u: ArrayLike) -> Floats:
        """G(u) = ∫_0^u g: distribution function of the selected quantile under the reference."""

    @property
    @abstractmethod
    def expected_quantile(self) -> float:
        """Mean selected quantile when the reference is decoded: ∫ u g(u) du."""

    @property
    @abstractmethod
    def kl_bound(self) -> float:
        """KL in nats of the decoded reference from the reference: ∫ g log g du.

        Exact for continuous rewards, an upper bound with ties (Beirami et al., arXiv 2401.01879).
        """

    @abstractmethod
    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Indices of the candidates, the selected one first; ties keep the order they were drawn in."""

    @abstractmethod
    def order_weights(self, m: int) -> Floats:
        """Probability that the i-th smallest of ``m`` samples is selected from a random subset of them, shape (m,).

        The weights of the unbiased estimate from m samples; NaN where the procedure needs more than ``m``.
        """


@dataclass(frozen=True, slots=True)
class FixedN(Procedure):
    """A procedure that always draws ``n`` candidates."""

    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidValue("n", self.n, "a whole number of at least 1")

    @property
    def kl_bound(self) -> float:
        """Log N − (N−1)/N, whichever end is taken."""
        return math.log(self.n) - (self.n - 1) / self.n


@dataclass(frozen=True, slots=True)
class Standard(FixedN):
    """One draw, taken as it comes."""

    family: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        if self.n != 1:
            raise InvalidValue("n", self.n, "1 for standard decoding")

    def __str__(self) -> str:
        return "standard"

    def density(self, u: ArrayLike) -> Floats:
        return np.ones_like(np.asarray(u, dtype=np.float64))

    def cumulative(self, u: ArrayLike) -> Floats:
        return np.array(u, dtype=np.float64)

    @property
    def expected_quantile(self) -> float:
        return 0.5

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return np.arange(np.size(rewards))

    def order_weights(self, m: int) -> Floats:
        return np.full(m, 1 / m)


@dataclass(frozen=True, slots=True)
class BestOfN(FixedN):
    """The candidate of highest reward among ``n``: g(u) = n u^(n−1)."""

    family: ClassVar[str] = "best-of-n"

    def __str__(self) -> str:
        return f"best-of-{self.n}"

    def density(self, u: ArrayLike) -> Floats:
        return np.asarray(self.n * np.asarray(u, dtype=np.float64) ** (self.n - 1))

    def cumulative(self, u: ArrayLike) -> Floats:
        return np.asarray(np.asarray(u, dtype=np.float64) ** self.n)

    @property
    def expected_quantile(self) -> float:
        return self.n / (self.n + 1)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return np.argsort(-np.asarray(rewards, dtype=np.float64), kind="stable")

    def order_weights(self, m: int) -> Floats:
        if self.n > m:
            return np.full(m, np.nan)
        below = np.arange(m)  # the other n - 1 of the subset are among the i smaller ones
        return np.asarray(np.exp(_log_choose(below, self.n - 1) - _log_choose(m, self.n)))


@dataclass(frozen=True, slots=True)
class WorstOfN(FixedN):
    """The candidate of lowest reward among ``n``: g(u) = n (1−u)^(n−1)."""

    family: ClassVar[str] = "worst-of-n"

    def __str__(self) -> str:
        return f"worst-of-{self.n}"

    def density(self, u: ArrayLike) -> Floats:
        return np.asarray(self.n * (1 - np.asarray(u, dtype=np.float64)) ** (self.n - 1))

    def cumulative(self, u: ArrayLike) -> Floats:
        return np.asarray(1 - (1 - np.asarray(u, dtype=np.float64)) ** self.n)

    @property
    def expected_quantile(self) -> float:
        return 1 / (self.n + 1)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return np.argsort(np.asarray(rewards, dtype=np.float64), kind="stable")

    def order_weights(self, m: int) -> Floats:
        return BestOfN(self.n).order_weights(m)[::-1]


@dataclass(frozen=True, slots=True)
class BestOfPoisson(Procedure):
    """The best of 1 + Poisson(``mu``) candidates: g(u) = (μu + 1) e^{μ(u−1)}, G(u) = u e^{μ(u−1)}.

    Its KL against expected quantile is within a hair of the optimal tilt's (Khalaf et al., arXiv 2506.19248).
    """

    mu: float
    family: ClassVar[str] = "best-of-poisson"

    def __post_init__(self) -> None:
        if not 0 < self.mu <= 500:
            raise InvalidValue("mu", self.mu, "a number above 0 and at most 500")

    def __str__(self) -> str:
        return f"best-of-poisson({self.mu:.15g})"

    def density(self, u: ArrayLike) -> Floats:
        u = np.asarray(u, dtype=np.float64)
        return np.asarray((self.mu * u + 1) * np.exp(self.mu * (u - 1)))

    def cumulative(self, u: ArrayLike) -> Floats:
        u = np.asarray(u, dtype=np.float64)
        return np.asarray(u * np.exp(self.mu * (u - 1)))

    @property
    def expected_quantile(self) -> float:
        """1 − 1/μ + (1 − e^{−μ})/μ², by its series where that cancels."""
        if self.mu < 1e-3:
            return 0.5 + self.mu / 6 - self.mu**2 / 24
        return 1 - 1 / self.mu - math.expm1(-self.mu) / self.mu**2

    @property
    def kl_bound(self) -> float:
        """∫ log(1 + μu) g du − μ(1 − ∫ u g du), the first by the exponential integral Ei."""
        if self.mu < 1e-3:
            return self.mu**2 / 6
        s = 1 + self.mu
        # antiderivative of s e^s log s is (s - 1) e^s log s - e^s + Ei(s); Ei(s) e^{-s} stays finite
        log_term = (s - 1) * math.log(s) - 1 + _scaled_ei(s) + math.exp(-self.mu) * (1 - _scaled_ei(1.0))
        return log_term / self.mu - self.mu * (1 - self.expected_quantile)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        return BestOfN().ranking(rewards)

    def order_weights(self, m: int) -> Floats:
        """The mixture over N; NaN where more than one draw in 10⁹ would need over ``m`` samples."""
        if pdtrc(m - 1, self.mu) > 1e-9:
            return np.full(m, np.nan)
        k = np.arange(m)
        chances = np.exp(k * math.log(self.mu) - self.mu - gammaln(k + 1))
        weights = sum(chance * BestOfN(n).order_weights(m) for n, chance in enumerate(chances, start=1))
        return np.asarray(weights / np.sum(chances))


def _log_choose(n: ArrayLike, k: int) -> Floats:
    """Log of the binomial coefficient, −inf where k > n."""
    n = np.asarray(n, dtype=np.float64)
    room = np.maximum(n - k, 0)
    return np.where(n < k, -np.inf, gammaln(np.maximum(n, k) + 1) - gammaln(k + 1) - gammaln(room + 1))


def _scaled_ei(s: float) -> float:
    """Ei(s) e^{−s}; by its asymptotic series where Ei overflows."""
    if s < 50:
        return float(expi(s)) * math.exp(-s)
    return sum(math.factorial(k) / s ** (k + 1) for k in range(20))


def parse_procedure(text: str) -> Procedure:
    """The procedure of a written form: ``standard``, ``best-of-4``, ``worst-of-4``, ``best-of-poisson(3)``.

    Raises:
        InvalidValue: the text is none of these.
    """
    if text == "standard":
        return Standard()
    if match := re.fullmatch(r"(best|worst)-of-([1-9][0-9]{0,17})", text):
        n = int(match[2])
        return BestOfN(n) if match[1] == "best" else WorstOfN(n)
    if match := re.fullmatch(rf"best-of-poisson\(({NUMBER})\)", text):
        return BestOfPoisson(float(match[1]))
    raise InvalidValue("procedure", text, ACCEPTED)
