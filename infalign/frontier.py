"""The frontier of win rate against KL: what a transformation gains under a procedure, and the β that gets there.

β means something else for each transformation: compare them at equal KL.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from infalign.calibration import Estimator
from infalign.errors import InvalidValue
from infalign.policies import AnchoredPolicies, Policy, simulate_pieces
from infalign.procedures import Procedure
from infalign.transforms import Gaussian, Transformation, parse_transformation, target_kl


@dataclass(frozen=True)
class Point:
    """One point of the frontier."""

    transformation: str
    procedure: str
    kl: float
    """Nats from the reference."""
    win_rate: float
    """Of the policy over the reference, both decoded by the procedure."""
    beta: float
    anchors: int | None = None
    """K reference rewards per prompt; None for exact calibration."""
    win_rate_error: float = 0.0
    """Standard error of the simulation over anchors; 0 by quadrature."""


def kl(transformation: Transformation, beta: float) -> float:
    """KL in nats of the optimum from the reference at ``beta``."""
    return Policy.of(transformation, beta).kl


def win_rate(transformation: Transformation, procedure: Procedure, beta: float) -> float:
    """Inference-time win rate of the optimum at ``beta`` over the reference, both decoded by ``procedure``."""
    return Policy.of(transformation, beta).win_rate(procedure)


def beta_for_kl(transformation: Transformation, target: float) -> float:
    """The β at which the optimum is ``target`` nats from the reference.

    Raises:
        InvalidValue: ``target`` is not in (0, 10], or floats cannot hold the policy.
    """
    return _solve_beta(lambda beta: kl(transformation, beta), target, str(transformation))


def point(
    transformation: str,
    procedure: Procedure,
    *,
    kl: float | None = None,
    beta: float | None = None,
    anchors: int | None = None,
    estimator: Estimator = Estimator.JEFFREYS,
    aligned_for: Procedure | None = None,
) -> Point:
    """What the written ``transformation`` reaches under ``procedure`` at a KL, or at a β.

    ``optimal`` is the optimum for ``procedure``, or for ``aligned_for`` where that differs.

    With ``anchors`` = K, quantiles are estimated from K reference rewards per prompt, averaged over simulated prompts;
    ``optimal`` stays the optimum for exact calibration, and ``gaussian``, an uncalibrated reward, needs no anchors.

    Raises:
        InvalidValue: an unknown transformation, both or neither of ``kl`` and ``beta``, or a KL out of reach.
        NotConverged: the optimum was not found.
    """
    if (kl is None) == (beta is None):
        raise InvalidValue("kl", kl, "a KL or a beta, exactly one of the two")
    phi = parse_transformation(transformation, aligned_for or procedure, kl=kl, beta=beta)
    if anchors is None or isinstance(phi, Gaussian):
        beta = beta_for_kl(phi, kl) if kl is not None else beta or 0
        policy = Policy.of(phi, beta)
        return Point(transformation, str(procedure), policy.kl, policy.win_rate(procedure), beta)
    pieces = simulate_pieces(anchors)
    if kl is not None:
        beta = _solve_beta(
            lambda beta: float(np.mean(AnchoredPolicies.of(phi, beta, pieces, estimator).kl)),
            kl,
            f"{transformation} with {anchors} anchors",
            limit=float(np.mean(-np.log(pieces[:, -1]))),
        )
    policies = AnchoredPolicies.of(phi, beta or 0, pieces, estimator)
    wins = policies.win_rate(procedure)
    error = float(np.std(wins, ddof=1) / math.sqrt(len(wins)))
    return Point(
        transformation, str(procedure), float(np.mean(policies.kl)), float(np.mean(wins)), beta or 0, anchors, error
    )


def _solve_beta(kl_at: Callable[[float], float], target: float, whose: str, limit: float = math.inf) -> float:
    """The root of a KL that falls from ``limit`` to 0 as β grows."""
    if target_kl(target) >= limit:
        raise InvalidValue("kl", target, f"below {limit:.3g} nats for {whose}, which tell no more apart")
    low, high = -1.0, 1.0  # log beta
    while kl_at(math.exp(low)) < target:
        low *= 2
        if low < -700:
            raise InvalidValue("kl", target, f"less for {whose}: its beta would be below what floats hold")
    while kl_at(math.exp(high)) > target:
        high *= 2
    return math.exp(brentq(lambda log_beta: kl_at(math.exp(log_beta)) - target, low, high, xtol=1e-12))
