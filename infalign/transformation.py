"""The base class of the transformations Φ of the calibrated reward.

CTRL, the training method of InfAlign, maximises E[Φ(u)] − β KL(π‖π_ref). In quantile space its optimum has the density
e^{Φ(u)/β} / Z with Z = ∫ e^{Φ(u)/β} du (InfAlign, arXiv 2412.19792, section 4).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from infalign.arrays import Floats
from infalign.calibration import Estimator
from infalign.errors import InvalidValue
from infalign.quadrature import graded_mesh


class Transformation(ABC):
    """An increasing function Φ of the quantile.

    Examples:
        >>> from infalign import Exponential, Transformation
        >>> isinstance(Exponential(10), Transformation)
        True
    """

    @abstractmethod
    def __call__(self, u: ArrayLike) -> Floats:
        """Compute Φ(u).

        Args:
            u: Quantiles in [0, 1], of any shape.

        Returns:
            Φ, in the shape of ``u``.
        """

    @abstractmethod
    def derivative(self, u: ArrayLike) -> Floats:
        """Compute Φ'(u), which is above 0.

        Args:
            u: Quantiles in [0, 1], of any shape.

        Returns:
            The derivative, in the shape of ``u``.
        """

    @abstractmethod
    def gap(self, v: ArrayLike) -> Floats:
        """Compute Φ(1) − Φ(1 − v), the loss at a distance from the top quantile, without cancellation.

        Args:
            v: Distances 1 − u from the top, of any shape.

        Returns:
            The gap, in the shape of ``v``. It is measured from :attr:`top` if Φ(1) is infinite.
        """

    @property
    def top(self) -> float:
        """Φ(1), or a finite value to measure :meth:`gap` from if Φ(1) is infinite."""
        return float(self(1.0))

    @property
    def span(self) -> float:
        """Φ(1) − Φ(0), which is infinite for ``log`` and ``gaussian``."""
        return float(self.gap(1.0))

    def log_partition(self, beta: float) -> float:
        """Compute log Z = log ∫_0^1 e^{Φ(u)/β} du, which is the same for every prompt.

        The integral is by quadrature on a mesh graded towards u = 1, where the mass lies for small β. Subclasses with
        a closed form use it.

        Args:
            beta: KL penalty, above 0.

        Returns:
            log Z.

        Raises:
            InvalidValue: ``beta`` is not above 0, or too small for the mesh.
        """
        mass, shift = self.tilt(beta)
        return self.top / beta + shift + math.log(graded_mesh().integral(mass))

    def tilt(self, beta: float) -> tuple[Floats, float]:
        """Compute the density of the optimum up to a factor, without overflow.

        Args:
            beta: KL penalty, above 0.

        Returns:
            e^{−gap(v)/β − shift} at the nodes v of :func:`infalign.quadrature.graded_mesh`, and the shift that makes
            its maximum 1.

        Raises:
            InvalidValue: ``beta`` is not above 0, or so small that the mesh cannot resolve the policy.
        """
        with np.errstate(over="ignore", under="ignore"):
            exponent = -self.gap(graded_mesh().nodes) / check_beta(beta)
            shift = float(np.max(exponent))
            mass = np.exp(exponent - shift)
        if not graded_mesh().resolves(mass):
            raise InvalidValue("beta", beta, f"a beta whose policy floats can hold, for {self}")
        return mass, shift

    def log_partition_anchors(self, beta: float, samples: int, estimator: Estimator = Estimator.JEFFREYS) -> float:
        """Compute log Z_K, which is log Z for quantiles that are estimated from K anchors.

        Over draws and anchors, a response of the reference has each rank r from 0 to K with probability 1/(K + 1). So
        Z_K is the mean of e^{Φ(c_r)/β} over r, where c_r is the estimate for rank r.

        Args:
            beta: KL penalty, above 0.
            samples: K, the number of anchors.
            estimator: How ranks become quantiles.

        Returns:
            log Z_K.

        Raises:
            InvalidValue: ``beta`` is not above 0.
        """
        scores = self(estimator.quantile(np.arange(samples + 1.0), samples)) / check_beta(beta)
        return float(logsumexp(scores) - math.log(samples + 1))

    def normalise(self) -> "Transformation":
        """Rescale the transformation to [0, 1]. β is then in units of its span.

        Returns:
            (Φ(u) − Φ(0)) / (Φ(1) − Φ(0)), which makes the same policies.

        Raises:
            InvalidValue: The transformation is unbounded.
        """
        return NormalisedTransformation(self)


@dataclass(frozen=True, slots=True)
class NormalisedTransformation(Transformation):
    """(Φ(u) − Φ(0)) / (Φ(1) − Φ(0)) of a bounded transformation. :meth:`Transformation.normalise` makes one.

    Args:
        inner: The bounded transformation.

    Raises:
        InvalidValue: The transformation is unbounded.
    """

    inner: Transformation

    def __post_init__(self) -> None:
        if not math.isfinite(self.inner.span):
            raise InvalidValue("transformation", str(self.inner), "a bounded one, to be normalised")

    def __str__(self) -> str:
        return str(self.inner)

    def __call__(self, u: ArrayLike) -> Floats:
        """Compute the rescaled Φ(u), in [0, 1]."""
        return np.asarray(1 - self.gap(1 - np.asarray(u, dtype=np.float64)))

    def derivative(self, u: ArrayLike) -> Floats:
        """Compute Φ'(u) divided by the span of Φ."""
        return np.asarray(self.inner.derivative(u) / self.inner.span)

    def gap(self, v: ArrayLike) -> Floats:
        """Compute the gap of Φ divided by its span."""
        return np.asarray(self.inner.gap(v) / self.inner.span)


def check_beta(beta: float) -> float:
    """Check a KL penalty.

    Args:
        beta: The penalty.

    Returns:
        The same number.

    Raises:
        InvalidValue: ``beta`` is not above 0, or infinite.
    """
    if not 0 < beta < math.inf:
        raise InvalidValue("beta", beta, "a number above 0")
    return beta


def check_kl(kl: float) -> float:
    """Check that policies can be solved for a KL divergence.

    Args:
        kl: KL divergence in nats.

    Returns:
        The same number.

    Raises:
        InvalidValue: ``kl`` is not in (0, 10].
    """
    if not 0 < kl <= 10:
        raise InvalidValue("kl", kl, "nats, above 0 and at most 10")
    return kl
