"""Curves over N: estimates for many procedures at once, each with an interval over prompts.

The estimates are those of :mod:`infalign.estimators`. Here the samples are sorted once for all procedures, and the
bootstrap resamples the prompts once for all points of a curve.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.estimators import Estimate, Samples, check_samples
from infalign.procedures import Procedure

BLOCK = 250
"""Resamples that are held in memory at a time."""


def expected_curve(samples: Samples, procedures: Sequence[Procedure]) -> Floats:
    """Estimate the expected value of the selected sample for many procedures.

    Args:
        samples: The samples of each of P prompts.
        procedures: N procedures.

    Returns:
        (P, N) values; NaN where a procedure draws more candidates than there are samples. Column n is
        :func:`infalign.estimators.expected_value` for the n-th procedure.

    Raises:
        InvalidValue: A sample is not finite, or the samples of a prompt are empty or not one-dimensional.

    Examples:
        >>> from infalign import WorstOfN
        >>> expected_curve([[0.2, 0.4, 0.9]], [WorstOfN(1), WorstOfN(2), WorstOfN(4)]).round(3).tolist()
        [[0.5, 0.267, nan]]
    """
    rows = check_samples("samples", samples)
    values = np.empty((len(rows), len(procedures)))
    sizes = np.array([row.size for row in rows])
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        weights = np.stack([procedure.order_weights(int(size)) for procedure in procedures], axis=1)
        values[chosen] = np.sort(np.stack([rows[i] for i in chosen]), axis=1) @ weights
    return values


def curve_over_prompts(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Average each column over prompts, with its percentile bootstrap interval.

    Args:
        values: (P, N) figures of P prompts.
        level: Confidence level of the intervals. Each holds for its column alone.
        resamples: Number of bootstrap resamples.
        seed: Seed of the random numbers.

    Returns:
        N means with their intervals, whose ends are NaN for one prompt. A column with a NaN is NaN.

    Raises:
        InvalidValue: The level is not between 0 and 1, or there is no prompt.
    """
    values = np.asarray(values, dtype=np.float64)
    if not 0 < level < 1:
        raise InvalidValue("level", level, "a number between 0 and 1")
    if values.ndim != 2 or not len(values):
        raise InvalidValue("values", values.shape, "an array of at least one row, with a row per prompt")
    means = values.mean(axis=0)
    ends = np.full((2, values.shape[1]), np.nan)
    if len(values) > 1:
        random, prompts = np.random.default_rng(seed), len(values)
        drawn = np.empty((resamples, values.shape[1]))
        for start in range(0, resamples, BLOCK):
            stop = min(start + BLOCK, resamples)
            counts = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=stop - start)
            drawn[start:stop] = counts @ values / prompts
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Estimate(float(m), float(low), float(high), level) for m, low, high in zip(means, *ends, strict=True)]
