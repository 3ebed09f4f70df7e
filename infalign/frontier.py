"""The frontier of win rate against KL: what a transformation gains under a procedure, and the β that gets there.

β means something else for each transformation. Compare transformations at equal KL.
"""

import math
from dataclasses import dataclass

import numpy as np

from infalign.calibration import Estimator
from infalign.errors import InvalidValue
from infalign.mixture import Mixture
from infalign.parsing import parse_transformation
from infalign.policies import AnchoredPolicies, Policy, beta_for_kl, simulate_pieces, solve_beta
from infalign.procedures import Procedure
from infalign.transforms import Gaussian


@dataclass(frozen=True)
class Point:
    """One point of the frontier. :func:`point` computes one.

    Args:
        transformation: Written form of the transformation.
        procedure: Written form of the procedure, or of the mixture of several.
        kl: KL divergence from the reference in nats.
        win_rate: Win rate of the policy over the reference, both decoded by the procedure. For a mixture, the weighted
            mean of the win rates under its procedures.
        beta: KL penalty.
        anchors: K, the number of anchors of each prompt; None for exact calibration.
        win_rate_error: Standard error of the win rate from the simulation of anchors; 0 for exact calibration.
        aligned_for: Written form of the procedure or mixture that ``optimal`` is the optimum for; None for other
            transformations.

    Examples:
        >>> from infalign import Point
        >>> Point("identity", "standard", kl=0.0, win_rate=0.5, beta=float("inf")).anchors is None
        True
    """

    transformation: str
    procedure: str
    kl: float
    win_rate: float
    beta: float
    anchors: int | None = None
    win_rate_error: float = 0.0
    aligned_for: str | None = None


def point(
    transformation: str,
    procedure: Procedure | Mixture,
    *,
    kl: float | None = None,
    beta: float | None = None,
    anchors: int | None = None,
    estimator: Estimator = Estimator.JEFFREYS,
    training_procedure: Procedure | Mixture | None = None,
) -> Point:
    """Compute the win rate that a transformation reaches in theory, at a KL or at a β.

    Args:
        transformation: Written form of the transformation.
        procedure: Procedure that decodes the policy and the reference, or a mixture of several.
        kl: KL divergence from the reference in nats, in (0, 10].
        beta: KL penalty, instead of ``kl``.
        anchors: K, the number of anchors of each prompt. The result is then the mean over simulated prompts. None
            stands for exact calibration. ``optimal`` stays the optimum for exact calibration, and ``gaussian``, a
            reward without calibration, has no anchors.
        estimator: How ranks become quantiles, if there are anchors.
        training_procedure: The procedure or mixture that ``optimal`` is the optimum for, if it is not ``procedure``.

    Returns:
        The point, with the KL that belongs to the β or the β that belongs to the KL.

    Raises:
        InvalidValue: The transformation is unknown, the KL is out of reach, or not exactly one of ``kl`` and ``beta``
            is there.
        NotConverged: The optimum was not found.

    Examples:
        >>> from infalign import BestOfN, point
        >>> round(point("exp(10)", BestOfN(4), kl=0.5).win_rate, 4)
        0.8715
        >>> round(point("identity", BestOfN(4), kl=0.5).win_rate, 4)
        0.7998
    """
    if (kl is None) == (beta is None):
        raise InvalidValue("kl", kl, "a KL or a beta, exactly one of the two")
    mixture, aligned_for = Mixture.of(procedure), Mixture.of(training_procedure or procedure)
    phi = parse_transformation(transformation, aligned_for, kl=kl, beta=beta)
    goal = str(aligned_for) if transformation == "optimal" else None
    if anchors is None or isinstance(phi, Gaussian):
        beta = beta_for_kl(phi, kl) if kl is not None else beta or 0
        policy = Policy.of(phi, beta)
        wins = mixture.average(policy.win_rate)
        return Point(transformation, str(mixture), policy.kl, wins, beta, aligned_for=goal)
    pieces = simulate_pieces(anchors)
    if kl is not None:
        beta = solve_beta(
            lambda beta: float(np.mean(AnchoredPolicies.of(phi, beta, pieces, estimator).kl)),
            kl,
            f"{transformation} with {anchors} anchors",
            limit=float(np.mean(-np.log(pieces[:, -1]))),
        )
    policies = AnchoredPolicies.of(phi, beta or 0, pieces, estimator)
    each = mixture.average(policies.win_rate)
    error = float(np.std(each, ddof=1) / math.sqrt(len(each)))
    kl, win_rate = float(np.mean(policies.kl)), float(np.mean(each))
    return Point(transformation, str(mixture), kl, win_rate, beta or 0, anchors, error, goal)
