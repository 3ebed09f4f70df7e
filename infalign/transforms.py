"""Transformations Φ of the calibrated reward, each increasing in the quantile u.

CTRL maximises E[Φ(u)] − β KL(π‖π_ref); in quantile space its optimum has the density e^{Φ(u)/β} / Z with
Z = ∫ e^{Φ(u)/β} du (InfAlign, arXiv 2412.19792, section 4). Written forms: ``identity``, ``log``, ``exp(10)``
(e^{10(u−1)}, made for best-of-n) and ``exp(-10)`` (−e^{−10u}, made for worst-of-n), ``gaussian`` (the baseline), and
``optimal`` (:mod:`infalign.optimum`).
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, ndtri

from infalign.calibration import Estimator
from infalign.errors import InvalidValue
from infalign.procedures import NUMBER, Procedure
from infalign.quadrature import graded_mesh

Floats = NDArray[np.float64]
ACCEPTED = "identity, log, exp(T) with T other than 0 such as exp(10) or exp(-10), optimal, or gaussian"


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
        """Φ(1) − Φ(1−v): what is lost by being ``v`` below the top, without cancellation.

        Where Φ(1) is infinite, ``top`` stands for it.
        """

    @property
    def top(self) -> float:
        """Φ(1), or where that is infinite the finite value that :meth:`gap` is measured from."""
        return float(self(1.0))

    @property
    def span(self) -> float:
        """Φ(1) − Φ(0); infinite for ``log`` and ``gaussian``."""
        return float(self.gap(1.0))

    def log_partition(self, beta: float) -> float:
        """Log Z = log ∫_0^1 e^{Φ(u)/β} du, the same for every prompt.

        Quadrature on a mesh graded towards u = 1, where the mass sits for small β; exact where a subclass
        knows a closed form.
        """
        mass, shift = self.tilt(beta)
        return self.top / beta + shift + math.log(graded_mesh().integral(mass))

    def tilt(self, beta: float) -> tuple[Floats, float]:
        """(e^{−gap(v)/β − shift}, shift) on the nodes of the graded mesh, at most 1: Z f without overflow.

        Raises:
            InvalidValue: ``beta`` is not above 0, or so small that the mesh cannot resolve the policy.
        """
        with np.errstate(over="ignore", under="ignore"):
            exponent = -self.gap(graded_mesh().nodes) / positive_beta(beta)
            shift = float(np.max(exponent))
            mass = np.exp(exponent - shift)
        if not graded_mesh().resolves(mass):
            raise InvalidValue("beta", beta, f"a beta whose policy floats can hold, for {self}")
        return mass, shift

    def log_partition_anchors(self, beta: float, samples: int, estimator: Estimator = Estimator.JEFFREYS) -> float:
        """Log Z_K: the same with quantiles estimated from K = ``samples`` anchors, mean of e^{Φ(c_r)/β} over r = 0..K.

        A draw of the reference has each rank r with probability 1/(K + 1), over draws and anchors.
        """
        scores = self(estimator.quantile(np.arange(samples + 1.0), samples)) / positive_beta(beta)
        return float(logsumexp(scores) - math.log(samples + 1))

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
        s = 1 / positive_beta(beta)
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
        return -math.log1p(1 / positive_beta(beta))


@dataclass(frozen=True, slots=True)
class Exponential(Transformation):
    """Φ(u) = e^{t(u−1)} for t > 0 (rewards the top) and −e^{tu} for t < 0 (punishes the bottom)."""

    t: float

    def __post_init__(self) -> None:
        if self.t == 0 or not math.isfinite(self.t):
            raise InvalidValue("t", self.t, "a finite number other than 0")

    def __str__(self) -> str:
        return f"exp({self.t:.15g})"

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
class Gaussian(Transformation):
    """Φ(u) = Φ_N^{-1}(u), the normal quantile: a raw reward that is Gaussian under the reference, uncalibrated.

    The baseline: its policy is the reference shifted by 1/β standard deviations, KL = 1/(2β²) and the win rate under
    standard decoding is Φ_N(√KL).
    """

    def __str__(self) -> str:
        return "gaussian"

    def __call__(self, u: ArrayLike) -> Floats:
        return np.asarray(ndtri(np.asarray(u, dtype=np.float64)))

    def derivative(self, u: ArrayLike) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray(math.sqrt(2 * math.pi) * np.exp(self(u) ** 2 / 2))

    def gap(self, v: ArrayLike) -> Floats:
        return self(v)

    @property
    def top(self) -> float:
        """Φ(1/2) = 0: Φ(1) is infinite."""
        return 0.0

    def log_partition(self, beta: float) -> float:
        """Closed form: 1/(2β²)."""
        return 0.5 / positive_beta(beta) ** 2


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


PLAIN: dict[str, type[Transformation]] = {"identity": Identity, "log": Log, "gaussian": Gaussian}


def parse_transformation(
    text: str, procedure: Procedure | None = None, *, kl: float | None = None, beta: float | None = None
) -> Transformation:
    """The transformation of a written form; ``optimal`` is that of ``procedure`` at a KL, or at a β.

    Raises:
        InvalidValue: the text is none of these, or ``optimal`` comes without a procedure and a KL or β.
        NotConverged: the optimum was not found.
    """
    if text in PLAIN:
        return PLAIN[text]()
    if match := re.fullmatch(rf"exp\(({NUMBER})\)", text):
        return Exponential(float(match[1]))
    if text == "optimal":
        from infalign.optimum import optimal  # its solvers take a while to import

        if procedure is None or (kl is None and beta is None):
            raise InvalidValue("transformation", text, "optimal together with a procedure and a KL")
        return optimal(procedure, kl=kl, beta=beta)
    raise InvalidValue("transformation", text, ACCEPTED)


def check_transformation(text: str) -> str:
    """``text``, seen to be the written form of a transformation; ``optimal`` is not solved for.

    Raises:
        InvalidValue: it is none.
    """
    return text if text == "optimal" else str(parse_transformation(text))


def positive_beta(beta: float) -> float:
    """``beta``, seen to be above 0 and finite."""
    if not 0 < beta < math.inf:
        raise InvalidValue("beta", beta, "a number above 0")
    return beta


def target_kl(kl: float) -> float:
    """``kl``, seen to be one that policies can be solved for."""
    if not 0 < kl <= 10:
        raise InvalidValue("kl", kl, "nats, above 0 and at most 10")
    return kl
