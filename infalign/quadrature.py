"""Integrals over quantiles, on one fixed mesh that is fine where the policies have their mass.

The variable is v = 1 − u, the distance from the best response, so that nothing cancels near the top.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from infalign.arrays import Floats

ORDER = 16
"""Nodes of a panel."""


@dataclass(frozen=True)
class Mesh:
    """Gauss–Legendre nodes on S panels. Values at the nodes have the shape (16 S,).

    Args:
        edges: (S + 1,) ends of the panels, increasing.
        nodes: (16 S,) nodes.
        weights: (16 S,) weights, so that ∫ y = Σ weights · y.
    """

    edges: Floats
    nodes: Floats
    weights: Floats

    @classmethod
    def from_edges(cls, edges: Floats) -> "Mesh":
        """Put nodes on panels.

        Args:
            edges: (S + 1,) ends of the panels, increasing.

        Returns:
            The mesh.
        """
        x, w, _ = _panel()
        half = np.diff(edges)[:, None] / 2
        return cls(edges, (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel())

    def integral(self, values: Floats) -> float:
        """Integrate over all panels.

        Args:
            values: (16 S,) values at the nodes.

        Returns:
            ∫ y.
        """
        return float(self.weights @ values)

    def resolves(self, mass: Floats) -> bool:
        """Check that the mesh is fine enough for a density.

        Args:
            mass: (16 S,) non-negative values at the nodes.

        Returns:
            True if less than a thousandth of the mass lies in the first panel, which is the finest.
        """
        shares = self.weights * mass
        return bool(np.sum(shares[:ORDER]) < 1e-3 * np.sum(shares))

    def cumulative(self, values: Floats) -> Floats:
        """Integrate from the first edge to every node.

        Args:
            values: (16 S,) values at the nodes.

        Returns:
            (16 S,) integrals.
        """
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
    integrals = np.polynomial.legendre.legval(x, np.polynomial.legendre.legint(series, lbnd=-1)).T
    return x, w, np.asarray(integrals, np.float64)


@cache
def graded_mesh() -> Mesh:
    """Make the mesh of the library, on [0, 1] in v.

    Returns:
        A mesh of 254 panels. They halve towards v = 0 (down to 2^-100) and towards v = 1 (down to 2^-40) and are 1/128
        wide in between.
    """
    top, bottom = np.logspace(-100, -6, 95, base=2.0), 1 - np.logspace(-40, -6, 35, base=2.0)
    return Mesh.from_edges(np.unique(np.concatenate([[0.0], top, np.linspace(0, 1, 129)[1:], bottom])))
