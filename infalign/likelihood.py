"""The likelihood of the beta-binomial model: probabilities of a hit that differ between prompts as Beta(a, b).

Counts of hits are written once for all prompts, so that the time hardly depends on the number of prompts. All searches
are bisections and grids, which cannot diverge. :mod:`infalign.forecasts` is what one calls.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, gammaln

from infalign.arrays import Floats, check_finite
from infalign.errors import InvalidValue

Bools = NDArray[np.bool_]
"""Whether a condition holds, for several numbers at once."""
LEAST_SPREAD, LARGEST_SPREAD = math.log(1e-8), math.log(1e6)
"""Bounds of the log of θ = 1/(a + b). At the lower one, all prompts have the same probability in effect."""
BOUND = 30.0
"""Largest log-odds of a mean probability, which is then 1e-13 from 0 or 1."""
HALVINGS = 32
"""Steps of a bisection of log-odds, which leave an error of 1e-8."""
POINTS, ZOOMS = 33, 4
"""Points of a grid over logs of θ, and how many grids there are, each finer. The error left is 2e-4."""
STIRLING = 32.0
"""Arguments from which Stirling's series with three terms is exact in floating point."""


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of the mean μ = a/(a + b) and of θ = 1/(a + b).

    It is ∑_i A_i log(μ + iθ) + B_i log(1 − μ + iθ) − N_i log(1 + iθ), because a prompt with c hits among M samples has
    the likelihood ∏_{i<c} (μ + iθ) ∏_{i<M−c} (1 − μ + iθ) / ∏_{i<M} (1 + iθ).
    So all that counts is how many prompts have more than i hits, misses and samples. The sum is concave in μ, and
    regular at θ = 0, where the model is the binomial one. Methods take the log-odds t of μ and the log s of θ.

    Args:
        hits: A, the numbers of prompts with more than 0, 1, … hits.
        misses: B, the numbers of prompts with more than 0, 1, … misses.
        samples: N, the numbers of prompts with more than 0, 1, … samples.
    """

    hits: Floats
    misses: Floats
    samples: Floats

    @classmethod
    def of(cls, counts: ArrayLike, samples: ArrayLike) -> "Likelihood":
        """Make the likelihood of counts.

        Args:
            counts: (P,) numbers of hits of P prompts.
            samples: (P,) numbers of samples of the same prompts, or one number for all.

        Returns:
            The likelihood.

        Raises:
            InvalidValue: The numbers are not whole or out of their range, or no prompt has two samples.
        """
        hit, total = check_finite("counts", counts), check_finite("samples", samples)
        if hit.ndim != 1 or not hit.size:
            raise InvalidValue("counts", hit.shape, "a one-dimensional array of at least one prompt")
        if total.shape not in ((), hit.shape):
            raise InvalidValue("samples", total.shape, f"{hit.shape}, one number for each prompt, or one for all")
        if np.any(total != np.floor(total)) or total.max() < 2:
            raise InvalidValue("samples", float(total.max()), "whole numbers, of at least 2 for some prompt")
        wrong = (hit < 0) | (hit > total) | (hit != np.floor(hit))
        if np.any(wrong):
            raise InvalidValue("counts", float(hit[wrong][0]), "whole numbers from 0 to the number of samples")
        return cls(*(_exceed(numbers) for numbers in (hit, total - hit, total + 0 * hit)))

    def value(self, t: Floats, s: Floats) -> Floats:
        """Compute the log-likelihood.

        Args:
            t: (T,) log-odds of μ.
            s: (T,) logs of θ.

        Returns:
            (T,) log-likelihoods.
        """
        theta = np.exp(s)[:, None]
        total = np.log(expit(t)[:, None] + theta * np.arange(self.hits.size)) @ self.hits
        total += np.log(expit(-t)[:, None] + theta * np.arange(self.misses.size)) @ self.misses
        return np.asarray(total - np.log1p(theta * np.arange(self.samples.size)) @ self.samples)

    def best(self, s: Floats) -> Floats:
        """Find the μ with the largest likelihood at each θ, where the slope is 0.

        Args:
            s: (T,) logs of θ.

        Returns:
            (T,) log-odds of μ; −inf if there is no hit, inf if there is no miss.
        """
        if not self.hits.size or not self.misses.size:
            return np.full(s.shape, np.inf if self.hits.size else -np.inf)
        theta = np.exp(s)[:, None]
        up, down = theta * np.arange(self.hits.size), theta * np.arange(self.misses.size)

        def rises(t: Floats) -> Bools:
            gain = (self.hits / (expit(t)[:, None] + up)).sum(axis=1)
            return np.asarray(gain > (self.misses / (expit(-t)[:, None] + down)).sum(axis=1))

        return _bisect(rises, np.full(s.shape, -BOUND), np.full(s.shape, BOUND))

    def profile(self, s: Floats) -> Floats:
        """Compute the largest log-likelihood at each θ.

        Args:
            s: (T,) logs of θ.

        Returns:
            (T,) log-likelihoods.
        """
        return self.value(self.best(s), s)

    @cached_property
    def peak(self) -> float:
        """The log of the θ with the largest likelihood."""
        return _maximise(self.profile, LEAST_SPREAD, LARGEST_SPREAD)

    def fit(self) -> tuple[float, float]:
        """Find the a and b with the largest likelihood."""
        s = np.array([self.peak])
        t, concentration = self.best(s), np.exp(-s)
        return float(expit(t)[0] * concentration[0]), float(expit(-t)[0] * concentration[0])

    def interval(self, k: int, fall: float) -> tuple[float, float]:
        """Find the lowest and the highest hit@k of all a and b that are likely.

        Args:
            k: Number of samples of an attempt.
            fall: How far the log-likelihood of a likely pair may be below the largest.

        Returns:
            Both values of hit@k.
        """
        least = self.profile(np.array([self.peak]))[0] - fall
        first, last = (
            _reach(lambda s: self.profile(s) >= least, self.peak, far) for far in (LEAST_SPREAD, LARGEST_SPREAD)
        )

        def end(s: Floats, side: int) -> Floats:
            """Compute hit@k at the lowest likely μ of each θ for the side −1, and at the highest for the side 1."""
            start = np.clip(side * self.best(s), -BOUND, BOUND)
            t = side * _bisect(lambda t: np.asarray(self.value(side * t, s) >= least), start, np.full(s.shape, BOUND))
            return side * mean_hit(expit(t) / np.exp(s), expit(-t) / np.exp(s), np.float64(k))

        def extreme(side: int) -> float:
            best = _maximise(lambda s: end(s, side), first, last)
            return float(side * end(np.array([best]), side)[0])

        return extreme(-1) if self.hits.size else 0.0, extreme(1) if self.misses.size else 1.0


def mean_hit(a: Floats | np.float64, b: Floats | np.float64, k: Floats | np.float64) -> Floats:
    """Compute 1 − Γ(b + k) Γ(a + b) / (Γ(b) Γ(a + b + k)), also where a + b is much larger than k.

    Args:
        a: First parameter, of any shape.
        b: Second parameter, in the shape of ``a``.
        k: Numbers of samples of an attempt.

    Returns:
        Hit@k over prompts whose probabilities of a hit are Beta(a, b).
    """
    miss = _log_rise(b, k) - _log_rise(a + b, k) + k * np.log1p(-a / (a + b + k))
    return np.asarray(np.abs(np.expm1(np.minimum(miss, 0))))


def _exceed(numbers: Floats) -> Floats:
    """Count how many of the numbers exceed 0, 1, … and so on up to the largest."""
    return np.asarray(numbers.size - np.cumsum(np.bincount(numbers.astype(np.int_)))[:-1], dtype=np.float64)


def _bisect(holds: Callable[[Floats], Bools], below: Floats, above: Floats) -> Floats:
    """Find up to where a condition holds, for several numbers at once. It is taken to hold at the lower bounds."""
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        held = holds(middle)
        below, above = np.where(held, middle, below), np.where(held, above, middle)
    return below


def _reach(holds: Callable[[Floats], Bools], near: float, far: float) -> float:
    """Find up to where a condition holds on the way from one number to another, by ever finer grids."""
    for _ in range(ZOOMS):
        grid = np.linspace(near, far, POINTS)
        fails = np.flatnonzero(~holds(grid[1:]))
        if not fails.size:
            return far
        near, far = grid[fails[0]], grid[fails[0] + 1]
    return float(near)


def _maximise(function: Callable[[Floats], Floats], low: float, high: float) -> float:
    """Find the largest value of a function by ever finer grids."""
    for _ in range(ZOOMS):
        grid = np.linspace(low, high, POINTS)
        best = int(np.argmax(function(grid)))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, POINTS - 1)]
    return float(grid[best])


def _log_rise(x: Floats | np.float64, k: Floats | np.float64) -> Floats:
    """Compute log(Γ(x + k) / (Γ(x) (x + k)^k)), for large x by Stirling's series, which does not cancel."""
    large = np.maximum(x, STIRLING)
    series = (large - 0.5) * np.log1p(k / large) - k + _stirling(large + k) - _stirling(large)
    return np.where(x < STIRLING, gammaln(x + k) - gammaln(x) - k * np.log(x + k), series)


def _stirling(x: Floats | np.float64) -> Floats:
    return np.asarray((1 / 12 - (1 / 360 - 1 / (1260 * x**2)) / x**2) / x)
