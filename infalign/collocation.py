"""The boundary value problem of the optimal policy of any mixture of procedures, solved by collocation.

It is F'' = F' k(F, u) / β with F(0) = 0 and F(1) = 1 (:mod:`infalign.optimum`). It is solved in v = 1 − u, the distance
from the top quantile.
"""

import math
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_bvp
from scipy.special import expit

from infalign.arrays import Floats
from infalign.errors import NotConverged
from infalign.mixture import Mixture

STRETCH = 12.0
"""v = (e^{12z} − 1)/(e^{12} − 1) in terms of the mesh's z in [0, 1]: as fine at the top as policies of 10 nats are."""
COARSE, FINE = 1e-3, 1e-7
"""Tolerances of the steps and of the last one."""
NODES = {COARSE: 5_000, FINE: 20_000}
"""Most nodes of a mesh, by tolerance."""
STEPS, EVALUATIONS = 150, 1000
"""Most steps from the reference to the policy, and most evaluations of the equation in one, so that nothing hangs."""


class Solution(NamedTuple):
    """A solution of the boundary value problem, in v = 1 − u."""

    log_beta: float
    kl: float
    v: Floats
    survival: Floats
    """1 − F."""
    density: Floats
    """f."""


def solve_by_collocation(mixture: Mixture, kl: float | None, beta: float | None) -> Solution:
    """Solve for any mixture.

    log 1/β climbs from where the policy is the reference, and each solution is the first guess of the next. Where f is
    below e^{−60}, it counts for nothing, and log f falls no faster than a coarse mesh can follow.

    Args:
        mixture: The mixture.
        kl: KL divergence of the policy from the reference in nats; None for a ``beta``.
        beta: KL penalty; None for a ``kl``.

    Returns:
        The solution.

    Raises:
        NotConverged: It was not found.
    """

    def refuse(reason: str) -> NotConverged:
        return NotConverged(f"optimal: no solution for {mixture} at kl {kl}, beta {beta}: {reason}")

    def solve(z: Floats, y: Floats, guess: float, tolerance: float, at: float | None = None) -> Any:
        """Solve for log 1/β = ``at``, or for ``kl`` if ``at`` is None."""
        evaluations = count()

        def slopes(z: Floats, y: Floats, p: Floats) -> Floats:
            if next(evaluations) > EVALUATIONS:
                raise refuse(f"it takes more than {EVALUATIONS} evaluations")
            return _slopes(mixture, z, y, float(p[0]))

        def bounds(a: Floats, b: Floats, p: Floats) -> Floats:
            return np.array([a[0], b[0] - 1, a[2], b[2] - kl if at is None else p[0] - at])

        solution = solve_bvp(slopes, bounds, z, y, p=[guess], tol=tolerance, max_nodes=NODES[tolerance])
        if solution.status != 0:
            raise refuse(solution.message)
        return solution

    z = np.linspace(0, 1, 201)
    y = np.stack([_place(z), np.zeros_like(z), np.zeros_like(z)])
    last = math.inf if beta is None else -math.log(beta)
    log_inverse, step = min(-6.0 if kl is None else 0.5 * math.log(kl) - 6, last), 1.0
    below = log_inverse
    for _ in range(STEPS):
        try:
            z, y = _thin(solve(z, y, log_inverse, COARSE, at=log_inverse))
            if log_inverse == last or (kl is not None and y[2, -1] >= kl):
                break
            below, step = log_inverse, min(2 * step, 1.0)
        except NotConverged:
            log_inverse, step = log_inverse - step, step / 4
            if step < 1e-3:
                raise
        log_inverse = min(log_inverse + step, last)
    else:
        raise refuse(f"it is not reached in {STEPS} steps")
    above = log_inverse
    while True:
        try:
            solution = solve(z, y, log_inverse, FINE, at=None if kl else last)
            break
        except NotConverged:
            if kl is None or above - below < 1e-3:
                raise
        log_inverse = (below + above) / 2  # the guess was too far away: come closer to the KL first
        z, y = _thin(solve(z, y, log_inverse, COARSE, at=log_inverse))
        below, above = (below, log_inverse) if y[2, -1] >= kl else (log_inverse, above)
    survival, log_density, area = solution.y
    return Solution(-float(solution.p[0]), float(area[-1]), _place(solution.x), survival, np.exp(log_density))


def _place(z: Floats) -> Floats:
    return np.asarray(np.expm1(STRETCH * z) / math.expm1(STRETCH))


def _slopes(mixture: Mixture, z: Floats, y: Floats, log_inverse: float) -> Floats:
    """Compute the derivatives by z of 1 − F, log f and ∫ f log f."""
    v, dv = _place(z), STRETCH * np.exp(STRETCH * z) / math.expm1(STRETCH)
    survival, log_density, _ = y
    density = np.exp(log_density)
    fall = np.exp(log_inverse) * mixture.slope(np.clip(1 - survival, 0, 1), 1 - v) * dv
    nothing = expit(-20 - log_density / 3)
    fall = (1 - nothing) * fall + nothing * np.minimum(fall, 2e4)
    return np.stack([density * dv, -fall, density * log_density * dv])


def _thin(solution: Any) -> tuple[Floats, Floats]:
    """Take a mesh of some 400 nodes out of a solution of ``solve_bvp``, which itself only ever adds nodes."""
    keep = np.linspace(0, len(solution.x) - 1, min(len(solution.x), 401)).round().astype(int)
    return solution.x[keep], solution.y[:, keep]
