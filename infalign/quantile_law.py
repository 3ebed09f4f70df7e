"""Laws of a quantile that is not known yet, and what follows from them in closed form.

The quantile of a response is known when the response is finished. Before that, a prefix scorer (Mudgal et al.,
Controlled Decoding, arXiv 2310.17022) predicts its law from the prompt and the text so far. The law is a histogram: B
bins of equal width, with a uniform density in each. Its distribution function is therefore linear in every bin, and
the product of several is a polynomial there. Gauss–Legendre quadrature integrates it exactly. Responses are
independent given their prefixes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue

Mask = NDArray[np.bool_]
"""An array of truth values."""
TOLERANCE = 1e-6
"""How far a sum of probabilities may be from 1."""


@dataclass(frozen=True)
class QuantileLaw:
    """Laws of the final quantiles of any number of responses.

    Args:
        probabilities: (..., B) probabilities of B bins of equal width, from the lowest quantiles to the highest.

    Raises:
        InvalidValue: A probability is negative or not finite, or those of a response do not add up to 1.

    Examples:
        >>> from infalign import QuantileLaw
        >>> law = QuantileLaw([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
        >>> law.mean.round(3).tolist()
        [0.225, 0.625]
        >>> law.exceeds(0.75).round(3).tolist()
        [0.0, 0.4]
    """

    probabilities: Floats

    def __post_init__(self) -> None:
        values = check_finite("probabilities", self.probabilities)
        if values.ndim < 1 or not values.shape[-1]:
            raise InvalidValue("probabilities", values.shape, "(..., B) with at least one bin")
        if np.any(values < 0) or np.any(np.abs(values.sum(axis=-1) - 1) > TOLERANCE):
            raise InvalidValue("probabilities", "others", "numbers of at least 0 that add up to 1 for each response")
        object.__setattr__(self, "probabilities", values)

    @classmethod
    def uniform(cls, bins: int) -> "QuantileLaw":
        """Return the law of a response that is not begun: every quantile is equally likely.

        Args:
            bins: B, the number of bins.

        Examples:
            >>> from infalign import QuantileLaw
            >>> float(QuantileLaw.uniform(4).mean)
            0.5
        """
        return cls(np.full(bins, 1 / bins))

    @classmethod
    def of_ranks(cls, law: Floats, bins: int) -> "QuantileLaw":
        """Return the law of a draw whose ranks among K anchors have a given distribution.

        Args:
            law: (K + 1,) probability of each rank, such as :func:`infalign.drift.rank_law`.
            bins: B, the number of bins.

        Examples:
            >>> from infalign import QuantileLaw
            >>> QuantileLaw.of_ranks([0.1, 0.2, 0.3, 0.4], 2).probabilities.round(3).tolist()
            [0.3, 0.7]
        """
        below = np.concatenate([[0.0], np.cumsum(law)])
        return cls(np.diff(np.interp(np.linspace(0, 1, bins + 1), np.linspace(0, 1, below.size), below)))

    @property
    def mirror(self) -> "QuantileLaw":
        """The laws of 1 − u for a quantile u, for worst-of-n."""
        return QuantileLaw(self.probabilities[..., ::-1])

    def tilt(self, policy: "QuantileLaw") -> "QuantileLaw":
        """Turn laws of responses of the reference into those of responses of a policy.

        The optimal policy draws a response of quantile u more often than the reference does, by a factor f(u). This
        holds for every response that begins with a prefix, so the law given the prefix is multiplied by f too.

        Args:
            policy: (B,) law of a response of the policy that is not begun.

        Returns:
            (..., B) laws for responses of the policy. Where a law has no probability left, it is kept as it is.

        Examples:
            >>> from infalign import QuantileLaw
            >>> law, policy = QuantileLaw([[0.5, 0.5], [0.8, 0.2]]), QuantileLaw([0.2, 0.8])
            >>> law.tilt(policy).probabilities.round(3).tolist()
            [[0.2, 0.8], [0.5, 0.5]]
        """
        tilted = self.probabilities * policy.probabilities
        total = tilted.sum(axis=-1, keepdims=True)
        return QuantileLaw(np.where(total > 0, tilted / np.where(total > 0, total, 1), self.probabilities))

    @property
    def bins(self) -> int:
        """B, the number of bins."""
        return int(self.probabilities.shape[-1])

    @property
    def mean(self) -> Floats:
        """Expected quantiles, of shape (...,)."""
        return np.asarray(self.probabilities @ ((np.arange(self.bins) + 0.5) / self.bins))

    def cdf(self, quantile: ArrayLike) -> Floats:
        """Compute the probability that the final quantile is at most a given one.

        Args:
            quantile: Quantiles in [0, 1], of a shape that broadcasts with (...,).

        Returns:
            Probabilities.

        Examples:
            >>> from infalign import QuantileLaw
            >>> QuantileLaw([0.5, 0.5, 0.0, 0.0]).cdf([0.25, 0.375, 1.0]).tolist()
            [0.5, 0.75, 1.0]
        """
        place = np.clip(check_finite("quantile", quantile), 0, 1) * self.bins
        share = np.clip(place[..., None] - np.arange(self.bins), 0, 1)
        return np.asarray(np.sum(share * self.probabilities, axis=-1))

    def exceeds(self, quantile: ArrayLike) -> Floats:
        """Compute the probability that the final quantile is above a given one.

        Args:
            quantile: Quantiles in [0, 1], of a shape that broadcasts with (...,).

        Returns:
            Probabilities.
        """
        return 1 - self.cdf(quantile)

    def best_probabilities(self, best: ArrayLike = 0.0, pending: Mask | None = None) -> Floats:
        """Compute the probability that each of n responses becomes better than all others.

        The others are the finished responses, of which only the best counts, and the other n − 1 responses of the laws.
        For a response with density f_i, that is the integral of f_i(u) Π_{j ≠ i} F_j(u) over u above ``best``.

        Args:
            best: Highest quantile of the finished responses, of shape (...,); 0 if none is finished.
            pending: (..., n) which of the laws count; all if left out. A law that does not count gets probability 0.

        Returns:
            (..., n) probabilities for laws of shape (..., n, B). What is missing to 1 is the probability that the best
            finished response stays the best.

        Examples:
            >>> from infalign import QuantileLaw
            >>> law = QuantileLaw([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
            >>> law.best_probabilities().round(3).tolist()
            [0.12, 0.88]
            >>> law.best_probabilities(best=0.75).round(3).tolist()
            [0.0, 0.4]
        """
        weights, below = self._nodes(best, pending)
        first = np.ones_like(below[..., :1, :, :])
        left = np.cumprod(np.concatenate([first, below[..., :-1, :, :]], axis=-3), axis=-3)
        right = np.cumprod(np.concatenate([first, below[..., :0:-1, :, :]], axis=-3), axis=-3)[..., ::-1, :, :]
        density = self.bins * self.probabilities
        chances = np.sum(density * np.sum(left * right * weights, axis=-1), axis=-1)
        return np.asarray(chances if pending is None else np.where(pending, chances, 0.0))

    def expected_best(self, best: ArrayLike = 0.0) -> Floats:
        """Compute the expected quantile of the best of the n responses and those that are finished.

        Args:
            best: Highest quantile of the finished responses, of shape (...,); 0 if none is finished.

        Returns:
            (...,) expected quantiles for laws of shape (..., n, B): 1 minus the integral of Π F_j(u) over u above
            ``best``.

        Examples:
            >>> import numpy as np
            >>> from infalign import QuantileLaw
            >>> float(QuantileLaw(np.full((4, 8), 1 / 8)).expected_best().round(6))
            0.8
        """
        weights, below = self._nodes(best, None)
        return 1 - np.asarray(np.sum(np.prod(below, axis=-3) * weights[..., 0, :, :], axis=(-2, -1)))

    def reach(self, target: ArrayLike, draws: int = 0) -> Floats:
        """Compute the probability that one of the n responses, or of further draws, has a quantile above a target.

        A further draw of the reference has the uniform law.

        Args:
            target: Quantiles in [0, 1], of a shape that broadcasts with (...,).
            draws: Number of further draws.

        Returns:
            (...,) probabilities 1 − target^draws Π F_j(target) for laws of shape (..., n, B).

        Examples:
            >>> from infalign import QuantileLaw
            >>> law = QuantileLaw([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
            >>> float(law.reach(0.75).round(3)), float(law.reach(0.75, draws=2).round(3))
            (0.4, 0.662)
        """
        target = np.asarray(target, dtype=np.float64)
        below = np.prod(self.cdf(target[..., None]), axis=-1)
        return np.asarray(1 - below * target**draws)

    def _nodes(self, best: ArrayLike, pending: Mask | None) -> tuple[Floats, Floats]:
        """Nodes of a quadrature above ``best``: weights (..., 1, B, G), and every F_j there, (..., n, B, G)."""
        if self.probabilities.ndim < 2:
            raise InvalidValue("probabilities", self.probabilities.shape, "(..., n, B): a law for each of n responses")
        points, weights = np.polynomial.legendre.leggauss((self.probabilities.shape[-2] + 2) // 2)
        edges = np.arange(self.bins + 1) / self.bins
        low = np.clip(check_finite("best", best)[..., None], edges[:-1], edges[1:])
        width = (edges[1:] - low)[..., None]
        nodes = low[..., None] + width * (points + 1) / 2
        share = (nodes - edges[:-1, None]) * self.bins
        below = np.cumsum(self.probabilities, axis=-1) - self.probabilities
        values = below[..., None] + self.probabilities[..., None] * share[..., None, :, :]
        if pending is not None:
            values = np.where(pending[..., None, None], values, 1.0)
        return (width * weights / 2)[..., None, :, :], np.asarray(values)
