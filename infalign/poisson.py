"""Best-of-Poisson: best-of-N with a random number of candidates."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expi, gammaln, pdtrc

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.procedures import BestOfN, Procedure


@dataclass(frozen=True, slots=True)
class BestOfPoisson(Procedure):
    """The candidate with the highest reward among 1 + Poisson(``mu``) candidates.

    At each KL its expected quantile is almost that of the optimal policy (Khalaf et al., arXiv 2506.19248).

    Args:
        mu: Mean number of candidates beyond the first, above 0 and at most 500.

    Raises:
        InvalidValue: ``mu`` is out of range.

    Examples:
        >>> from infalign import BestOfPoisson
        >>> procedure = BestOfPoisson(3)
        >>> str(procedure), round(procedure.expected_quantile, 4), round(procedure.kl_bound, 4)
        ('best-of-poisson(3)', 0.7722, 0.4946)
    """

    mu: float
    family: ClassVar[str] = "best-of-poisson"

    def __post_init__(self) -> None:
        if not 0 < self.mu <= 500:
            raise InvalidValue("mu", self.mu, "a number above 0 and at most 500")

    def __str__(self) -> str:
        return f"best-of-poisson({self.mu:.15g})"

    def density(self, u: ArrayLike) -> Floats:
        """Compute g(u) = (μu + 1) e^{μ(u−1)}."""
        u = np.asarray(u, dtype=np.float64)
        return np.asarray((self.mu * u + 1) * np.exp(self.mu * (u - 1)))

    def cumulative(self, u: ArrayLike) -> Floats:
        """Compute G(u) = u e^{μ(u−1)}."""
        u = np.asarray(u, dtype=np.float64)
        return np.asarray(u * np.exp(self.mu * (u - 1)))

    @property
    def expected_quantile(self) -> float:
        """Mean selected quantile 1 − 1/μ + (1 − e^{−μ})/μ², by its series where that cancels."""
        if self.mu < 1e-3:
            return 0.5 + self.mu / 6 - self.mu**2 / 24
        return 1 - 1 / self.mu - math.expm1(-self.mu) / self.mu**2

    @property
    def kl_bound(self) -> float:
        """KL bound ∫ log(1 + μu) g du − μ(1 − ∫ u g du), the first term by the exponential integral Ei."""
        if self.mu < 1e-3:
            return self.mu**2 / 6
        s = 1 + self.mu
        # antiderivative of s e^s log s is (s - 1) e^s log s - e^s + Ei(s); Ei(s) e^{-s} stays finite
        log_term = (s - 1) * math.log(s) - 1 + _scaled_ei(s) + math.exp(-self.mu) * (1 - _scaled_ei(1.0))
        return log_term / self.mu - self.mu * (1 - self.expected_quantile)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Order candidates by falling reward."""
        return BestOfN().ranking(rewards)

    def order_weights(self, m: int) -> Floats:
        """Average the weights of best-of-n over the number n of candidates.

        The result is NaN if more than one draw in 10⁹ would have over m candidates.
        """
        if pdtrc(m - 1, self.mu) > 1e-9:
            return np.full(m, np.nan)
        k = np.arange(m)
        chances = np.exp(k * math.log(self.mu) - self.mu - gammaln(k + 1))
        weights = sum(chance * BestOfN(n).order_weights(m) for n, chance in enumerate(chances, start=1))
        return np.asarray(weights / np.sum(chances))


def _scaled_ei(s: float) -> float:
    """Compute Ei(s) e^{−s}, by its asymptotic series where Ei overflows."""
    if s < 50:
        return float(expi(s)) * math.exp(-s)
    return sum(math.factorial(k) / s ** (k + 1) for k in range(20))
