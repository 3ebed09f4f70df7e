"""The transformations that have a formula.

Their written forms are ``identity``, ``log``, ``exp(10)`` (e^{10(u−1)}, made for best-of-n), ``exp(-10)`` (−e^{−10u},
made for worst-of-n) and ``gaussian`` (the baseline). The optimal transformation is in :mod:`infalign.optimum`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.transformation import Transformation, check_beta


@dataclass(frozen=True, slots=True)
class Identity(Transformation):
    """Φ(u) = u, the calibrated reward itself. It is optimal for standard decoding.

    Examples:
        >>> from infalign import Identity
        >>> round(Identity().log_partition(1.0), 4)
        0.5413
    """

    def __str__(self) -> str:
        return "identity"

    def __call__(self, u: ArrayLike) -> Floats:
        """Compute Φ(u) = u."""
        return np.array(u, dtype=np.float64)

    def derivative(self, u: ArrayLike) -> Floats:
        """Compute Φ'(u) = 1."""
        return np.ones_like(np.asarray(u, dtype=np.float64))

    def gap(self, v: ArrayLike) -> Floats:
        """Compute v."""
        return np.array(v, dtype=np.float64)

    def log_partition(self, beta: float) -> float:
        """Compute log Z by its closed form log(β (e^{1/β} − 1))."""
        s = 1 / check_beta(beta)
        return s + math.log(-math.expm1(-s)) - math.log(s)


@dataclass(frozen=True, slots=True)
class Log(Transformation):
    """Φ(u) = log u. Its optimum has the density of best-of-(1 + 1/β).

    Examples:
        >>> from infalign import Log
        >>> round(float(Log()(0.5)), 4), Log().span
        (-0.6931, inf)
    """

    def __str__(self) -> str:
        return "log"

    def __call__(self, u: ArrayLike) -> Floats:
        """Compute log u."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.asarray(u, dtype=np.float64)))

    def derivative(self, u: ArrayLike) -> Floats:
        """Compute 1/u."""
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.asarray(u, dtype=np.float64))

    def gap(self, v: ArrayLike) -> Floats:
        """Compute −log(1 − v)."""
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log1p(-np.asarray(v, dtype=np.float64)))

    def log_partition(self, beta: float) -> float:
        """Compute log Z by its closed form −log(1 + 1/β)."""
        return -math.log1p(1 / check_beta(beta))


@dataclass(frozen=True, slots=True)
class Exponential(Transformation):
    """Φ(u) = e^{t(u−1)} for t > 0, which rewards the top, and −e^{tu} for t < 0, which punishes the bottom.

    Args:
        t: Exponent, a finite number other than 0.

    Raises:
        InvalidValue: ``t`` is 0 or not finite.

    Examples:
        >>> from infalign import Exponential
        >>> Exponential(10)([0.0, 0.9, 1.0]).round(4).tolist()
        [0.0, 0.3679, 1.0]
        >>> str(Exponential(-10))
        'exp(-10)'
    """

    t: float

    def __post_init__(self) -> None:
        if self.t == 0 or not math.isfinite(self.t):
            raise InvalidValue("t", self.t, "a finite number other than 0")

    def __str__(self) -> str:
        return f"exp({self.t:.15g})"

    def __call__(self, u: ArrayLike) -> Floats:
        """Compute e^{t(u−1)}, or −e^{tu} for t < 0."""
        u = np.asarray(u, dtype=np.float64)
        return np.asarray(np.exp(self.t * (u - 1)) if self.t > 0 else -np.exp(self.t * u))

    def derivative(self, u: ArrayLike) -> Floats:
        """Compute |t Φ(u)|."""
        return np.asarray(np.abs(self.t * self(u)))

    def gap(self, v: ArrayLike) -> Floats:
        """Compute 1 − e^{−tv}, or e^t (e^{−tv} − 1) for t < 0."""
        v = np.asarray(v, dtype=np.float64)
        if self.t > 0:
            return np.asarray(-np.expm1(-self.t * v))
        # e^t (e^{-tv} - 1), arranged so that nothing overflows at t = -1000
        return np.asarray(-np.exp(self.t * (1 - v)) * np.expm1(self.t * v))


@dataclass(frozen=True, slots=True)
class Gaussian(Transformation):
    """Φ(u) = Φ_N^{-1}(u), the normal quantile.

    It is the baseline: a raw reward without calibration that is Gaussian under the reference. Its policy shifts the
    rewards of the reference by 1/β standard deviations. The KL is 1/(2β²), and the win rate under standard decoding is
    Φ_N(√KL).

    Examples:
        >>> from infalign import Gaussian
        >>> Gaussian()([0.5, 0.975]).round(2).tolist()
        [0.0, 1.96]
    """

    def __str__(self) -> str:
        return "gaussian"

    def __call__(self, u: ArrayLike) -> Floats:
        """Compute the normal quantile of u."""
        return np.asarray(ndtri(np.asarray(u, dtype=np.float64)))

    def derivative(self, u: ArrayLike) -> Floats:
        """Compute the reciprocal of the normal density at Φ(u)."""
        with np.errstate(over="ignore"):
            return np.asarray(math.sqrt(2 * math.pi) * np.exp(self(u) ** 2 / 2))

    def gap(self, v: ArrayLike) -> Floats:
        """Compute Φ(1/2) − Φ(1 − v), which is Φ(v)."""
        return self(v)

    @property
    def top(self) -> float:
        """Φ(1/2) = 0, since Φ(1) is infinite."""
        return 0.0

    def log_partition(self, beta: float) -> float:
        """Compute log Z by its closed form 1/(2β²)."""
        return 0.5 / check_beta(beta) ** 2
