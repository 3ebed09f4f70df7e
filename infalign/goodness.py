"""A test of calibrations: other draws of the reference must have uniform quantiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.table import CalibrationTable


@dataclass(frozen=True)
class Goodness:
    """How well a calibration fits draws of the reference that are no anchors.

    Args:
        prompts: Number of prompts.
        samples: K, the number of anchors of each prompt.
        draws: Number of draws in the test, over all prompts.
        histogram: (K + 1,) share of the draws at each rank from 0 to K. A draw that ties is spread over the ranks it
            spans. Each share is 1/(K + 1) for a uniform distribution.
        distance: Largest difference between the distribution function of the histogram and the uniform one.
        p_value: Probability of a larger distance if draws and anchors come from the same law; NaN without
            permutations.
        mean_quantile: Mean quantile of the draws, 1/2 for a good calibration.
        tie_rate: Probability that two anchors of one prompt tie.
        resolution: Mean smallest step of a quantile, 1/(different anchors + 1).

    Examples:
        >>> import numpy as np
        >>> from infalign import CalibrationTable, Goodness
        >>> rewards = np.random.default_rng(0).normal(size=(50, 24))
        >>> keys = tuple(str(number) for number in range(50))
        >>> table = CalibrationTable(keys, rewards[:, :16])
        >>> good = Goodness.of(table, keys, list(rewards[:, 16:]), permutations=99)
        >>> good.draws, good.p_value > 0.05
        (400, True)
    """

    prompts: int
    samples: int
    draws: int
    histogram: Floats
    distance: float
    p_value: float
    mean_quantile: float
    tie_rate: float
    resolution: float

    @classmethod
    def of(
        cls,
        table: CalibrationTable,
        keys: Sequence[str],
        rewards: Sequence[ArrayLike],
        *,
        permutations: int = 199,
        seed: int = 0,
    ) -> "Goodness":
        """Test a calibration on draws of the reference that are no anchors.

        Ties are spread over the ranks they span, which is exactly uniform in expectation (the non-randomised histogram
        of Czado, Gneiting and Held, 2009). Draws of one prompt share its anchors, so the p-value is by permutation: the
        anchors and draws of a prompt change places at random. This is exact with ties and for any K.

        Args:
            table: The calibration.
            keys: Prompt keys that are in the table.
            rewards: For each key, the rewards of other draws of the reference.
            permutations: Number of permutations for the p-value; 0 for none.
            seed: Seed of the random numbers.

        Returns:
            The result of the test.

        Raises:
            InvalidValue: A prompt is not in the table, a reward is not finite, or keys and rewards differ in number.
        """
        if len(keys) != len(rewards) or not keys:
            raise InvalidValue("rewards", len(rewards), f"{len(keys) or 'at least one'}, one row of rewards per key")
        calibrations = [table.lookup(key) for key in keys]
        for key, calibration in zip(keys, calibrations, strict=True):
            if calibration.scope != "prompt":
                raise InvalidValue("keys", key, "prompts of the table")
        k = table.samples
        pools = [
            np.concatenate([calibration.anchors, calibration.round_to_grid(row)])
            for calibration, row in zip(calibrations, rewards, strict=True)
        ]
        histogram = _histogram(pools, k)
        distance = _distance(histogram)
        rng = np.random.default_rng(seed)
        exceedances = [
            _distance(_histogram([rng.permutation(row) for row in pools], k)) >= distance - 1e-12
            for _ in range(permutations)
        ]
        quantiles = [calibration.quantile(row) for calibration, row in zip(calibrations, rewards, strict=True)]
        return cls(
            prompts=len(keys),
            samples=k,
            draws=sum(row.size for row in quantiles),
            histogram=histogram,
            distance=distance,
            p_value=(1 + sum(exceedances)) / (1 + permutations) if permutations else math.nan,
            mean_quantile=float(np.mean(np.concatenate(quantiles))),
            tie_rate=table.tie_rate,
            resolution=float(np.mean([1 / (np.unique(calibration.anchors).size + 1) for calibration in calibrations])),
        )


def _histogram(pools: Sequence[Floats], k: int) -> Floats:
    """Compute the share of draws at each rank. The first ``k`` of every row are anchors, the rest are draws."""
    change = np.zeros(k + 2)
    for row in pools:
        anchors, draws = np.sort(row[:k]), row[k:]
        low, high = anchors.searchsorted(draws, "left"), anchors.searchsorted(draws, "right")
        share = 1 / (high - low + 1)
        change += np.bincount(low, share, k + 2) - np.bincount(high + 1, share, k + 2)
    density = np.cumsum(change)[:-1]
    return np.asarray(density / density.sum())


def _distance(histogram: Floats) -> float:
    """Compute Kolmogorov's distance of the histogram from the uniform one."""
    return float(np.max(np.abs(np.cumsum(histogram) - np.arange(1, histogram.size + 1) / histogram.size)))
