"""Integrals over quantiles, on one fixed mesh that is fine where tilted policies have their mass.

The variable is v = 1 − u, the distance from the best response, so that nothing cancels near the top.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ORDER = 16


@dataclass(frozen=True)
class Mesh:
    """Gauss–Legendre nodes on S panels; values on it have shape (S * 16,)."""

    edges: Floats
    """(S + 1,), increasing."""
    nodes: Floats
    weights: Floats
    """∫ y = Σ weights · y."""

    @classmethod
    def on(cls, edges: Floats) -> "Mesh":
        """The mesh of given panels."""
        x, w, _ = _panel()
        half = np.diff(edges)[:, None] / 2
        return cls(edges, (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel())

    def integral(self, values: Floats) -> float:
        """∫ y over all panels."""
        return float(self.weights @ values)

    def resolves(self, mass: Floats) -> bool:
        """Whether little of a non-negative ``mass`` sits in the first panel, the finest there is."""
        shares = self.weights * mass
        return bool(np.sum(shares[:ORDER]) < 1e-3 * np.sum(shares))

    def cumulative(self, values: Floats) -> Floats:
        """∫ y from the first edge to every node."""
        panels = values.reshape(-1, ORDER)
        half = np.diff(self.edges)[:, None] / 2
        whole = np.sum(self.weights.reshape(-1, ORDER) * panels, axis=1)
        before = np.concatenate([[0.0], np.cumsum(whole)[:-1]])
        return np.asarray((before[:, None] + half * (panels @ _panel()[2].T)).ravel())


@cache
def _panel() -> tuple[Floats, Floats, Floats]:
    """Nodes and weights on [−1, 1], and (16, 16) the integral from −1 to node i of node j's Lagrange polynomial."""
    x, w = np.polynomial.legendre.leggauss(ORDER)
    series = np.linalg.inv(np.polynomial.legendre.legvander(x, ORDER - 1))
    running = np.asarray(np.polynomial.legendre.legval(x, np.polynomial.legendre.legint(series, lbnd=-1)).T, np.float64)
    return x, w, running


@cache
def graded_mesh() -> Mesh:
    """[0, 1] in v: panels that halve towards v = 0 (to 2^-100) and v = 1 (to 2^-40), 1/128 wide between."""
    top, bottom = np.logspace(-100, -6, 95, base=2.0), 1 - np.logspace(-40, -6, 35, base=2.0)
    return Mesh.on(np.unique(np.concatenate([[0.0], top, np.linspace(0, 1, 129)[1:], bottom])))
