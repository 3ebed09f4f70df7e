"""Policies in quantile space: the optimum of E[Φ(u)] − β KL, its KL from the reference, its win rate when decoded.

The optimum has density f(u) = e^{Φ(u)/β} / Z on quantiles and distribution function F. Decoded by a procedure (G, g),
like the reference, it wins with probability W = 1 − ∫ G(F(u)) g(u) du (InfAlign, arXiv 2412.19792, sections 3 and 4).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infalign.calibration import Estimator
from infalign.errors import InvalidValue
from infalign.procedures import Procedure
from infalign.quadrature import Mesh, graded_mesh
from infalign.transforms import Transformation, positive_beta

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """The optimum with exact calibration, on the nodes of the graded mesh: v = 1 − u increasing, shape (4064,)."""

    density: Floats
    """f at every node."""
    missing: Floats
    """1 − F at every node."""
    kl: float
    """KL from the reference in nats."""

    @classmethod
    def of(cls, transformation: Transformation, beta: float) -> "Policy":
        """By quadrature; good to about 1e-12.

        Raises:
            InvalidValue: ``beta`` is not above 0, or so small that the mesh cannot resolve the policy.
        """
        mesh = graded_mesh()
        mass, _ = transformation.tilt(beta)
        density = mass / mesh.integral(mass)
        kl = mesh.integral(density * np.log(np.where(density > 0, density, 1.0)))
        return cls(density, mesh.cumulative(density), max(0.0, kl))

    def win_rate(self, procedure: Procedure) -> float:
        """Probability that the policy's selected candidate beats the reference's."""
        mesh = graded_mesh()
        beaten = procedure.cumulative(np.clip(1 - self.missing, 0, 1)) * procedure.density(1 - mesh.nodes)
        return 1 - mesh.integral(beaten)


@dataclass(frozen=True)
class AnchoredPolicies:
    """The optima of S simulated prompts whose calibrations have K anchors each.

    K reference draws cut a prompt's quantiles into K + 1 pieces whose lengths are Dirichlet(1, ..., 1), and every
    response in piece r has the estimate c_r. f ∝ e^{Φ(c_r)/β} is flat on each piece and cannot tell the best
    responses apart: its KL is at most −log of the top piece, H_K = 1 + 1/2 + ... + 1/K nats on average.
    """

    pieces: Floats
    """(S, K + 1) lengths, lowest quantiles first; rows sum to 1."""
    density: Floats
    """(S, K + 1) f on each piece."""

    @classmethod
    def of(
        cls, transformation: Transformation, beta: float, pieces: Floats, estimator: Estimator
    ) -> "AnchoredPolicies":
        """The optima at ``beta``, each normalised over its own prompt."""
        samples = pieces.shape[1] - 1
        gap = transformation.gap(1 - estimator.quantile(np.arange(samples + 1.0), samples)) / positive_beta(beta)
        mass = np.exp(np.min(gap) - gap)
        return cls(pieces, mass / (pieces @ mass)[:, None])

    @property
    def kl(self) -> Floats:
        """KL of each from the reference in nats, shape (S,)."""
        log_density = np.log(np.where(self.density > 0, self.density, 1.0))
        return np.asarray(np.sum(self.pieces * self.density * log_density, axis=1))

    def win_rate(self, procedure: Procedure) -> Floats:
        """Win rate of each under ``procedure``, shape (S,); F is linear on every piece."""
        inside = Mesh.on(np.array([0.0, 1.0]))
        starts, reached = (np.cumsum(part, axis=1) - part for part in (self.pieces, self.pieces * self.density))
        beaten = np.zeros(len(self.pieces))
        for node, weight in zip(inside.nodes, inside.weights, strict=True):
            u = np.clip(starts + node * self.pieces, 0, 1)
            policy = np.clip(reached + node * self.pieces * self.density, 0, 1)
            beaten += weight * np.sum(self.pieces * procedure.cumulative(policy) * procedure.density(u), axis=1)
        return 1 - beaten


def simulate_pieces(samples: int, prompts: int = 2000, seed: int = 0) -> Floats:
    """(S, K + 1) lengths between the anchors of ``prompts`` simulated prompts with K = ``samples`` draws each."""
    if samples < 1:
        raise InvalidValue("anchors", samples, "a whole number of at least 1")
    return np.random.default_rng(seed).dirichlet(np.ones(samples + 1), size=prompts)
