"""Policies in quantile space: the optimum of E[Φ(u)] − β KL, its KL from the reference and its win rate.

The optimum has the density f(u) = e^{Φ(u)/β} / Z on quantiles and the distribution function F. If both it and the
reference are decoded by a procedure with distribution function G and density g, the policy wins with probability
W = 1 − ∫ G(F(u)) g(u) du (InfAlign, arXiv 2412.19792, sections 3 and 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from infalign.arrays import Floats
from infalign.calibration import Estimator
from infalign.errors import InvalidValue
from infalign.procedures import Procedure
from infalign.quadrature import Mesh, graded_mesh
from infalign.transformation import Transformation, check_beta, check_kl


@dataclass(frozen=True)
class Policy:
    """The optimal policy of a transformation at one β, for exact calibration.

    The arrays are at the nodes v = 1 − u of :func:`infalign.quadrature.graded_mesh`, v increasing.

    Args:
        density: (4064,) f.
        survival: (4064,) 1 − F.
        kl: KL divergence from the reference in nats.

    Examples:
        >>> from infalign import BestOfN, Exponential, Policy
        >>> policy = Policy.of(Exponential(10), beta=0.3)
        >>> round(policy.kl, 4), round(policy.win_rate(BestOfN(4)), 4)
        (0.5831, 0.8873)
    """

    density: Floats
    survival: Floats
    kl: float

    @classmethod
    def of(cls, transformation: Transformation, beta: float) -> "Policy":
        """Compute the policy by quadrature, to about 1e-12.

        Args:
            transformation: Φ.
            beta: KL penalty, above 0.

        Returns:
            The policy.

        Raises:
            InvalidValue: ``beta`` is not above 0, or so small that the mesh cannot resolve the policy.
        """
        mesh = graded_mesh()
        mass, _ = transformation.tilt(beta)
        density = mass / mesh.integral(mass)
        kl = mesh.integral(density * np.log(np.where(density > 0, density, 1.0)))
        return cls(density, mesh.cumulative(density), max(0.0, kl))

    def win_rate(self, procedure: Procedure) -> float:
        """Compute the win rate over the reference.

        Args:
            procedure: The procedure that decodes both.

        Returns:
            The probability that the selected candidate of the policy has a higher reward than that of the reference.
        """
        mesh = graded_mesh()
        losses = procedure.cumulative(np.clip(1 - self.survival, 0, 1)) * procedure.density(1 - mesh.nodes)
        return 1 - mesh.integral(losses)


@dataclass(frozen=True)
class AnchoredPolicies:
    """The optimal policies of S simulated prompts whose calibrations have K anchors each.

    K draws of the reference cut the quantiles of a prompt into K + 1 pieces. Their lengths have the distribution
    Dirichlet(1, ..., 1), and every response in piece r has the estimate c_r. The density f ∝ e^{Φ(c_r)/β} is flat on
    each piece, so the policy cannot tell the best responses apart. Its KL is at most −log of the length of the top
    piece, which is H_K = 1 + 1/2 + ... + 1/K nats on average.

    Args:
        pieces: (S, K + 1) lengths, lowest quantiles first. Each row sums to 1.
        density: (S, K + 1) f on each piece.

    Examples:
        >>> import numpy as np
        >>> from infalign import AnchoredPolicies, Estimator, Identity, Standard
        >>> pieces = np.array([[0.25, 0.25, 0.5]])  # one prompt with two anchors
        >>> policies = AnchoredPolicies.of(Identity(), 0.5, pieces, Estimator.JEFFREYS)
        >>> policies.kl.round(4).tolist(), policies.win_rate(Standard()).round(4).tolist()
        ([0.1151], [0.6213])
    """

    pieces: Floats
    density: Floats

    @classmethod
    def of(
        cls, transformation: Transformation, beta: float, pieces: Floats, estimator: Estimator
    ) -> "AnchoredPolicies":
        """Compute the policy of each prompt.

        Args:
            transformation: Φ.
            beta: KL penalty, above 0.
            pieces: (S, K + 1) lengths between the anchors, such as those of :func:`simulate_pieces`.
            estimator: How ranks become quantiles.

        Returns:
            The policies, each with a density that integrates to 1.

        Raises:
            InvalidValue: ``beta`` is not above 0.
        """
        samples = pieces.shape[1] - 1
        gap = transformation.gap(1 - estimator.quantile(np.arange(samples + 1.0), samples)) / check_beta(beta)
        mass = np.exp(np.min(gap) - gap)
        return cls(pieces, mass / (pieces @ mass)[:, None])

    @property
    def kl(self) -> Floats:
        """(S,) KL divergence of each policy from the reference in nats."""
        log_density = np.log(np.where(self.density > 0, self.density, 1.0))
        return np.asarray(np.sum(self.pieces * self.density * log_density, axis=1))

    def win_rate(self, procedure: Procedure) -> Floats:
        """Compute the win rate of each policy over the reference.

        Args:
            procedure: The procedure that decodes both.

        Returns:
            (S,) win rates.
        """
        panel = Mesh.from_edges(np.array([0.0, 1.0]))
        starts, masses = (np.cumsum(part, axis=1) - part for part in (self.pieces, self.pieces * self.density))
        losses = np.zeros(len(self.pieces))
        for node, weight in zip(panel.nodes, panel.weights, strict=True):
            u = np.clip(starts + node * self.pieces, 0, 1)
            policy = np.clip(masses + node * self.pieces * self.density, 0, 1)  # F is linear on every piece
            losses += weight * np.sum(self.pieces * procedure.cumulative(policy) * procedure.density(u), axis=1)
        return 1 - losses


def simulate_pieces(samples: int, prompts: int = 2000, seed: int = 0) -> Floats:
    """Draw the lengths between the anchors of simulated prompts.

    Args:
        samples: K, the number of anchors of each prompt, at least 1.
        prompts: S, the number of prompts.
        seed: Seed of the random numbers.

    Returns:
        (S, K + 1) lengths, each row of which sums to 1.

    Raises:
        InvalidValue: ``samples`` is below 1.
    """
    if samples < 1:
        raise InvalidValue("anchors", samples, "a whole number of at least 1")
    return np.random.default_rng(seed).dirichlet(np.ones(samples + 1), size=prompts)


def beta_for_kl(transformation: Transformation, target: float) -> float:
    """Find the β at which the optimal policy has a KL divergence from the reference.

    Args:
        transformation: Φ.
        target: KL divergence in nats, above 0 and at most 10.

    Returns:
        The KL penalty β.

    Raises:
        InvalidValue: ``target`` is out of range, or floats cannot hold the policy.

    Examples:
        >>> from infalign import Gaussian, beta_for_kl
        >>> round(beta_for_kl(Gaussian(), 0.5), 6)
        1.0
    """
    return solve_beta(lambda beta: Policy.of(transformation, beta).kl, target, str(transformation))


def solve_beta(kl_at: Callable[[float], float], target: float, whose: str, limit: float = math.inf) -> float:
    """Find the β at which a falling KL divergence has a value.

    Args:
        kl_at: The KL divergence in nats as a function of β, which falls from ``limit`` to 0.
        target: The value in nats.
        whose: What the message of a refusal calls the policies.
        limit: Supremum of the KL divergence.

    Returns:
        The KL penalty β.

    Raises:
        InvalidValue: The value is not in (0, 10], not below ``limit``, or reached only where floats overflow.
    """
    if check_kl(target) >= limit:
        raise InvalidValue("kl", target, f"below {limit:.3g} nats for {whose}, which tell no more apart")
    low, high = -1.0, 1.0  # log beta
    while kl_at(math.exp(low)) < target:
        low *= 2
        if low < -700:
            raise InvalidValue("kl", target, f"less for {whose}: its beta would be below what floats hold")
    while kl_at(math.exp(high)) > target:
        high *= 2
    return math.exp(brentq(lambda log_beta: kl_at(math.exp(log_beta)) - target, low, high, xtol=1e-12))
