"""Transformations Φ of the calibrated reward, each increasing in the quantile u.

CTRL maximises E[Φ(u)] − β KL(π‖π_ref); in quantile space its optimum has the density e^{Φ(u)/β} / Z with
Z = ∫ e^{Φ(u)/β} du (InfAlign, arXiv 2412.19792, section 4). Written forms: ``identity``, ``log``, ``exp(10)``
(e^{10(u−1)}, made for best-of-n) and ``exp(-10)`` (−e^{−10u}, made for worst-of-n).
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.errors import InvalidValue

Floats = NDArray[np.float64]
ACCEPTED = "identity, log, or exp(t) with t other than 0, such as exp(10) or exp(-10)"


class Transformation(ABC):
    """An increasing function of the quantile."""

    @abstractmethod
    def __call__(self, u: ArrayLike) -> Floats:
        """Φ(u), same shape as ``u``."""

    @abstractmethod
    def derivative(self, u: ArrayLike) -> Floats:
        """Φ'(u) > 0, same shape as ``u``."""

    @abstractmethod
    def gap(self, v: ArrayLike) -> Floats:
        """Φ(1) − Φ(1−v) >= 0: what is lost by being ``v`` below the top, without cancellation."""

    @property
    def span(self) -> float:
        """Φ(1) − Φ(0); infinite for ``log``."""
        return float(self.gap(1.0))

    def log_partition(self, beta: float) -> float:
        """Log Z = log ∫_0^1 e^{Φ(u)/β} du.

        Quadrature on a mesh graded towards u = 1, where the mass sits for small β; exact where a subclass
        knows a closed form.
        """
        v, weights = graded_mesh()
        integral = float(np.sum(weights * np.exp(-self.gap(v) / _positive(beta))))
        return float(self(1.0)) / beta + math.log(integral)

    def normalised(self) -> "Transformation":
        """The same ordering of policies on the scale [0, 1]; β then counts in units of the whole span.

        Raises:
            InvalidValue: the transformation is unbounded.
        """
        return Normalised(self)


@dataclass(frozen=True, slots=True)
class Identity(Transformation):
    """Φ(u) = u: the calibrated reward itself, optimal for standard decoding."""

    def __str__(self) -> str:
        return "identity"

    def __call__(self, u: ArrayLike) -> Floats:
        return np.array(u, dtype=np.float64)

    def derivative(self, u: ArrayLike) -> Floats:
        return np.ones_like(np.asarray(u, dtype=np.float64))

    def gap(self, v: ArrayLike) -> Floats:
        return np.array(v, dtype=np.float64)

    def log_partition(self, beta: float) -> float:
        """Closed form: log(β (e^{1/β} − 1))."""
        s = 1 / _positive(beta)
        return s + math.log(-math.expm1(-s)) - math.log(s)


@dataclass(frozen=True, slots=True)
class Log(Transformation):
    """Φ(u) = log u: its optimum is exactly best-of-(1 + 1/β) distillation."""

    def __str__(self) -> str:
        return "log"

    def __call__(self, u: ArrayLike) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.asarray(u, dtype=np.float64)))

    def derivative(self, u: ArrayLike) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.asarray(u, dtype=np.float64))

    def gap(self, v: ArrayLike) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log1p(-np.asarray(v, dtype=np.float64)))

    def log_partition(self, beta: float) -> float:
        """Closed form: −log(1 + 1/β)."""
        return -math.log1p(1 / _positive(beta))


@dataclass(frozen=True, slots=True)
class Exponential(Transformation):
    """Φ(u) = e^{t(u−1)} for t > 0 (rewards the top) and −e^{tu} for t < 0 (punishes the bottom)."""

    t: float

    def __post_init__(self) -> None:
        if self.t == 0 or not math.isfinite(self.t):
            raise InvalidValue("t", self.t, "a finite number other than 0")

    def __str__(self) -> str:
        return f"exp({self.t:g})"

    def __call__(self, u: ArrayLike) -> Floats:
        u = np.asarray(u, dtype=np.float64)
        return np.asarray(np.exp(self.t * (u - 1)) if self.t > 0 else -np.exp(self.t * u))

    def derivative(self, u: ArrayLike) -> Floats:
        return np.asarray(np.abs(self.t * self(u)))

    def gap(self, v: ArrayLike) -> Floats:
        v = np.asarray(v, dtype=np.float64)
        if self.t > 0:
            return np.asarray(-np.expm1(-self.t * v))
        # e^t (e^{-tv} - 1), arranged so that nothing overflows at t = -1000
        return np.asarray(-np.exp(self.t * (1 - v)) * np.expm1(self.t * v))


@dataclass(frozen=True, slots=True)
class Normalised(Transformation):
    """(Φ(u) − Φ(0)) / (Φ(1) − Φ(0)) of a bounded transformation."""

    inner: Transformation

    def __post_init__(self) -> None:
        if not math.isfinite(self.inner.span):
            raise InvalidValue("transformation", str(self.inner), "a bounded one, to be normalised")

    def __str__(self) -> str:
        return str(self.inner)

    def __call__(self, u: ArrayLike) -> Floats:
        return np.asarray(1 - self.gap(1 - np.asarray(u, dtype=np.float64)))

    def derivative(self, u: ArrayLike) -> Floats:
        return np.asarray(self.inner.derivative(u) / self.inner.span)

    def gap(self, v: ArrayLike) -> Floats:
        return np.asarray(self.inner.gap(v) / self.inner.span)


def parse_transformation(text: str) -> Transformation:
    """The transformation of a written form: ``identity``, ``log``, ``exp(10)``, ``exp(-10)``.

    Raises:
        InvalidValue: the text is none of these.
    """
    if text == "identity":
        return Identity()
    if text == "log":
        return Log()
    if match := re.fullmatch(r"exp\(([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\)", text):
        try:
            return Exponential(float(match[1]))
        except ValueError:
            pass
    raise InvalidValue("transformation", text, ACCEPTED)


def _positive(beta: float) -> float:
    if not beta > 0:
        raise InvalidValue("beta", beta, "a number above 0")
    return beta


@cache
def graded_mesh() -> tuple[Floats, Floats]:
    """Nodes v in (0, 1) and weights: Gauss–Legendre on panels that halve towards v = 0 and v = 1."""
    top, bottom = np.logspace(-60, -6, 55, base=2.0), 1 - np.logspace(-40, -6, 35, base=2.0)
    edges = np.unique(np.concatenate([[0.0], top, np.linspace(0, 1, 129)[1:], bottom]))
    x, w = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    nodes = edges[:-1, None] + half * (x + 1)
    return nodes.ravel(), (half * w).ravel()
