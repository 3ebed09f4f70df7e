"""How good a calibration is: held-out draws of the reference must have uniform quantiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.calibration import CalibrationTable
from infalign.errors import InvalidValue

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Goodness:
    """Of a calibration with K anchors per prompt, on H held-out reference draws."""

    prompts: int
    samples: int
    """K."""
    held_out: int
    """H, over all prompts."""
    histogram: Floats
    """(K + 1,) share of draws at each rank 0..K, a draw that ties spread over its ranks; 1/(K+1) each if uniform."""
    distance: float
    """Largest difference between the distribution function of the histogram and the uniform one."""
    p_value: float
    """Chance of a larger distance if held-out rewards and anchors come from the same law; NaN without permutations."""
    mean_quantile: float
    tie_rate: float
    """Probability that two anchors of one prompt tie."""
    resolution: float
    """Mean smallest step of a quantile: 1/(distinct anchors + 1)."""

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
        """Test ``rewards[i]``, reference draws that are no anchors, against the calibration of the prompt ``keys[i]``.

        Ties are spread over the ranks they span (the non-randomised histogram of Czado, Gneiting and Held, 2009),
        which is exactly uniform in expectation. Draws of one prompt share its anchors, so p is by permutation:
        anchors and held-out rewards of a prompt are exchanged at random, which is exact with ties and for any K.

        Raises:
            InvalidValue: a prompt that the table does not know, or a reward that is not finite.
        """
        if len(keys) != len(rewards) or not keys:
            raise InvalidValue("rewards", len(rewards), f"{len(keys) or 'at least one'}, one row of rewards per key")
        calibrations = [table.lookup(key) for key in keys]
        for key, calibration in zip(keys, calibrations, strict=True):
            if calibration.scope != "prompt":
                raise InvalidValue("keys", key, "prompts of the table")
        k = table.samples
        pooled = [
            np.concatenate([calibration.anchors, calibration.on_grid(row)])
            for calibration, row in zip(calibrations, rewards, strict=True)
        ]
        histogram = _histogram(pooled, k)
        distance = _distance(histogram)
        rng = np.random.default_rng(seed)
        as_far = [
            _distance(_histogram([rng.permutation(row) for row in pooled], k)) >= distance - 1e-12
            for _ in range(permutations)
        ]
        quantiles = [calibration.quantile(row) for calibration, row in zip(calibrations, rewards, strict=True)]
        return cls(
            prompts=len(keys),
            samples=k,
            held_out=sum(row.size for row in quantiles),
            histogram=histogram,
            distance=distance,
            p_value=(1 + sum(as_far)) / (1 + permutations) if permutations else math.nan,
            mean_quantile=float(np.mean(np.concatenate(quantiles))),
            tie_rate=table.tie_rate,
            resolution=float(np.mean([1 / (np.unique(calibration.anchors).size + 1) for calibration in calibrations])),
        )


def _histogram(pooled: Sequence[Floats], k: int) -> Floats:
    """Share of draws at each rank among the first ``k`` of every row, the rest of which are the draws."""
    change = np.zeros(k + 2)
    for row in pooled:
        anchors, draws = np.sort(row[:k]), row[k:]
        low, high = anchors.searchsorted(draws, "left"), anchors.searchsorted(draws, "right")
        share = 1 / (high - low + 1)
        change += np.bincount(low, share, k + 2) - np.bincount(high + 1, share, k + 2)
    density = np.cumsum(change)[:-1]
    return np.asarray(density / density.sum())


def _distance(histogram: Floats) -> float:
    """Kolmogorov's distance of the histogram from the uniform one."""
    return float(np.max(np.abs(np.cumsum(histogram) - np.arange(1, histogram.size + 1) / histogram.size)))
