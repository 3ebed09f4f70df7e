"""The figures: the quality and the cost of each way, and how many tokens fixed N takes for the same quality."""

from dataclasses import dataclass

import numpy as np

from experiments.quality.ways import Way
from infalign.arrays import Floats
from infalign.estimators import Estimate, over_prompts
from infalign.procedures import BestOfN


@dataclass(frozen=True)
class Curve:
    """Fixed N on P prompts, for every N up to M, from candidates that were all drawn."""

    quantiles: Floats
    """(P, M) true quantiles of the candidates, counted so that 1 is best."""
    tokens: Floats
    """(P,) mean tokens of a candidate."""

    def best(self) -> Floats:
        """Return the expected quantile of the best of N for N = 1..M, of shape (P, M)."""
        count = self.quantiles.shape[1]
        weights = np.stack([BestOfN(n).order_weights(count) for n in range(1, count + 1)])
        return np.asarray(np.sort(self.quantiles, axis=1) @ weights.T)


@dataclass(frozen=True)
class Measured:
    """What a way gave for each of P prompts, as means over its repetitions."""

    way: Way
    quantile: Floats
    """(P,) true quantiles of the selected candidate, counted so that 1 is best."""
    tokens: Floats
    """(P,) tokens of all candidates."""
    seconds: Floats | None
    """(P, R) seconds of each request; None if none was sent."""
    first_seconds: Floats | None
    """(P, R) seconds until the first event."""
    judged: Floats | None
    """(P,) probability that the judge prefers the answer to one of the reference; None without a judge."""


def equal_n(measured: Measured, curve: Curve) -> tuple[Estimate, Estimate]:
    """Find the fixed N of the same mean quantile, and compare the tokens.

    Prompts are resampled for the way and for fixed N at once, so the intervals are paired.

    Args:
        measured: The way.
        curve: Fixed N on the same prompts.

    Returns:
        N, which is rarely a whole number, and the tokens of the way over those of N. NaN beyond the curve.
    """
    rows = np.column_stack([measured.quantile, measured.tokens, curve.tokens, curve.best()])

    def find(sample: Floats) -> float:
        means = sample.mean(axis=0)
        return float(np.interp(means[0], means[3:], np.arange(1, means.size - 2), left=np.nan, right=np.nan))

    def ratio(sample: Floats) -> float:
        return float(sample[:, 1].mean() / (find(sample) * sample[:, 2].mean()))

    return over_prompts(rows, find), over_prompts(rows, ratio)
