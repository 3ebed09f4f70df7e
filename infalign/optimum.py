"""The optimal transformation of a procedure: Φ*(y) = −∫_y^1 k(F(u), u) du with k(F, u) = g(F) g(u).

F is the distribution function of the policy that Φ* itself makes. No transformation reaches a higher win rate under
the procedure at the same KL (InfAlign, arXiv 2412.19792, sections 3 and 4, where reward and policy are coupled in this
way). For a mixture of procedures, whose win rate is Σ w_i W_i, the same holds with k = Σ w_i g_i(F) g_i(u). Iterating
the equation cycles for best-of-n. Since f = F' is e^{Φ*/β}/Z, the equation is also the boundary value problem

    F'' = F' k(F, u) / β,    F(0) = 0,  F(1) = 1.

It has exactly one solution, which is the global maximum, also where the objective is not concave
(docs/results/theory.md proves it). This module solves it by collocation for any mixture. For best-of-n and worst-of-n
it solves it for every β at once: their densities are powers, so every solution is a rescaled piece of one curve.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline

from infalign.arrays import Floats
from infalign.collocation import Solution, solve_by_collocation
from infalign.errors import InvalidValue, NotConverged
from infalign.mixture import Mixture
from infalign.policies import Policy, beta_for_kl
from infalign.procedures import FixedN, Procedure, WorstOfN
from infalign.quadrature import Mesh, graded_mesh
from infalign.transformation import Transformation, check_beta, check_kl
from infalign.transforms import Identity

RESIDUAL = 1e-6
"""Largest accepted distance between F and the distribution function of the policy that its Φ* makes."""


@dataclass(frozen=True)
class Optimal(Transformation):
    """The optimal transformation Φ* of a mixture of procedures, with Φ*(1) = 0. :func:`optimal` solves for one.

    Args:
        mixture: The mixture, perhaps of one procedure.
        beta: KL penalty.
        kl: KL divergence of its policy from the reference in nats, at this penalty.

    Examples:
        >>> from infalign import BestOfN, optimal
        >>> optimum = optimal(BestOfN(4), beta=0.5)
        >>> round(optimum.kl, 4), round(optimum.span, 4)
        (0.2119, 1.1787)
    """

    mixture: Mixture
    beta: float
    kl: float
    _survival: CubicHermiteSpline = field(repr=False, compare=False)
    """1 − F at v = 1 − u."""
    _gap: CubicHermiteSpline = field(repr=False, compare=False)

    def __str__(self) -> str:
        return "optimal"

    def __call__(self, u: ArrayLike) -> Floats:
        """Compute Φ*(u)."""
        return -self.gap(1 - np.asarray(u, dtype=np.float64))

    def derivative(self, u: ArrayLike) -> Floats:
        """Compute k(F(u), u), the derivative by the equation itself."""
        u = np.asarray(u, dtype=np.float64)
        return np.asarray(self.mixture.slope(np.clip(1 - self._survival(1 - u), 0, 1), u))

    def gap(self, v: ArrayLike) -> Floats:
        """Compute −Φ*(1 − v)."""
        return np.asarray(self._gap(np.asarray(v, dtype=np.float64)))


def optimal(procedure: Procedure | Mixture, *, kl: float | None = None, beta: float | None = None) -> Optimal:
    """Solve for the optimal transformation of a procedure or of a mixture, at a KL or at a penalty.

    Args:
        procedure: The procedure, or the mixture of several.
        kl: KL divergence of the policy from the reference in nats, above 0 and at most 10.
        beta: KL penalty above 0, instead of ``kl``.

    Returns:
        The transformation, with the KL and the penalty that belong to each other.

    Raises:
        InvalidValue: A number is out of range, or not exactly one of ``kl`` and ``beta`` is there.
        NotConverged: No solution was found, or floats cannot hold it.

    Examples:
        >>> from infalign import BestOfN, optimal
        >>> round(optimal(BestOfN(4), kl=0.5).beta, 4)
        0.2166
        >>> from infalign import parse_mixture
        >>> round(optimal(parse_mixture("best-of-4+worst-of-4"), kl=0.5).beta, 4)
        0.2516
    """
    if (kl is None) == (beta is None):
        raise InvalidValue("kl", kl, "a KL or a beta, exactly one of the two")
    if kl is not None:
        check_kl(kl)
    if beta is not None:
        check_beta(beta)
    return _solve(Mixture.of(procedure), kl, beta)


@lru_cache(maxsize=64)
def _solve(mixture: Mixture, kl: float | None, beta: float | None) -> Optimal:
    only = mixture.procedures[0] if len(mixture.procedures) == 1 else None
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        if not isinstance(only, FixedN):
            return _check_solution(mixture, solve_by_collocation(mixture, kl, beta))
        if only.n == 1:
            return _check_solution(mixture, _solve_identity(kl, beta))
        return _check_solution(mixture, _solve_by_scaling(only, kl, beta))


def _check_solution(mixture: Mixture, solution: Solution) -> Optimal:
    """Compute Φ* from the policy, and check that the policy of this Φ* is that policy."""
    steps = np.concatenate([[True], np.diff(solution.v) > 0])
    survival = CubicHermiteSpline(solution.v[steps], solution.survival[steps], solution.density[steps])
    mesh = graded_mesh()
    v = mesh.nodes
    policy = np.clip(1 - survival(v), 0, 1)
    slope = mixture.slope(policy, 1 - v)
    gap = mesh.cumulative(slope)
    mass = np.exp(-gap / math.exp(solution.log_beta))
    residual = float(np.max(np.abs(mesh.cumulative(mass) / mesh.integral(mass) - (1 - policy))))
    if not residual < RESIDUAL:
        raise NotConverged(
            f"optimal: no solution for {mixture} at {solution.kl:.3g} nats holds in floating point "
            f"(log beta {solution.log_beta:.1f}, off by {residual:.1e}); ask for a smaller KL"
        )
    ends = mixture.slope([1.0, 0.0], [1.0, 0.0])
    spline = CubicHermiteSpline(
        np.concatenate([[0.0], v, [1.0]]),
        np.concatenate([[0.0], gap, [mesh.integral(slope)]]),
        np.concatenate([ends[:1], slope, ends[1:]]),
    )
    return Optimal(mixture, math.exp(solution.log_beta), solution.kl, survival, spline)


def _solve_identity(kl: float | None, beta: float | None) -> Solution:
    """Solve for one draw: g = 1, so Φ* is the identity up to a constant, and its policy has a closed form."""
    beta = beta or beta_for_kl(Identity(), kl or 0)
    v = np.concatenate([[0.0], graded_mesh().nodes, [1.0]])
    density = np.exp(-v / beta) / -(beta * math.expm1(-1 / beta))
    survival = np.expm1(-v / beta) / math.expm1(-1 / beta)
    return Solution(math.log(beta), Policy.of(Identity(), beta).kl, v, survival, density)


def _solve_by_scaling(procedure: FixedN, kl: float | None, beta: float | None) -> Solution:
    """Solve for best-of-n or worst-of-n by the one curve w'' = ± w' (w x)^{n−1}, w(0) = 0, w'(0) = 1.

    F(u) = w(uX)/w(X) solves best-of-n (plus) for n²/β = X^n w(X)^{n−1}. Worst-of-n (minus) is the same with 1 − F in v.
    β and KL are monotone in X. The integration is along σ = x ± log w', which passes the pole smoothly.
    """
    n, sign = procedure.n, -1 if isinstance(procedure, WorstOfN) else 1

    def product(x: Floats | float, w: Floats | float) -> Floats:
        return np.asarray((w * x) ** (n - 1))

    def slopes(_: float, y: Floats) -> list[float]:
        x, w, s = y[:3]
        q, rise = float(product(x, w)), math.exp(s)
        return [1 / (1 + q), rise / (1 + q), sign * q / (1 + q), s * rise / (1 + q)]

    def log_beta(x: float, w: float) -> float:
        return 2 * math.log(n) - n * math.log(x) - (n - 1) * math.log(w)

    def distance(_: float, y: Floats) -> float:
        x, w, area = y[0], y[1], y[3]
        return float(area / w + math.log(x / w) - kl) if kl else math.log(beta or 0) - log_beta(x, w)

    distance.terminal = True  # type: ignore[attr-defined]
    tiny = 1e-9
    curve = solve_ivp(
        slopes,
        (tiny, 800.0),  # by then a worst-of-n density has fallen below the smallest float
        [tiny, tiny, 0.0, 0.0],
        method="DOP853",
        rtol=1e-12,
        atol=[0, 0, 1e-14, 1e-16],
        events=distance,
        dense_output=True,
    )
    along: Any = curve.sol
    x, w, s, area = (float(value) for value in curve.y[:, -1])
    if sign > 0:
        if curve.status != 1:
            raise NotConverged(f"optimal: no solution for {procedure} at kl {kl}, beta {beta} holds in floating point")
        mesh = Mesh.from_edges(np.unique(curve.t[-1] - curve.t))  # from the top end, where v must be exact
        xs, ws, ss = along(curve.t[-1] - mesh.nodes)[:3]
        step = 1 / (1 + product(xs, ws))
        v, survival = mesh.cumulative(step) / x, mesh.cumulative(step * np.exp(ss)) / w
    else:
        if curve.status != 1:  # w stays as it is from here on
            x = w * math.exp(kl - area / w) if kl else math.exp((log_beta(1, w) - math.log(beta or 0)) / n)
        mesh = Mesh.from_edges(curve.t)
        xs, ws, ss = along(mesh.nodes)[:3]
        v, survival = xs / x, ws / w
    density = np.exp(ss) * x / w
    first = math.exp(s if sign > 0 else 0.0) * x / w
    return Solution(
        log_beta(x, w),
        area / w + math.log(x / w),
        np.concatenate([[0.0], v, [1.0]]),
        np.concatenate([[0.0], survival, [1.0]]),
        np.concatenate([[first], density, density[-1:]]),
    )
