"""Waves: candidates that are drawn at the same time, and looked at together.

A stopping rule that looks at every candidate alone draws least, but one after another. In waves, all candidates of a
wave are drawn at once, and take part in the selection even if one of them would have been enough. So a request takes
few rounds, and its answer depends on the seed alone.

The quantiles here are counted so that 1 is best for the procedure. A threshold τ is a number, or the quantile of an
anchor and so random; only its moments E τ^k count.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln

from infalign.arrays import Floats
from infalign.errors import InvalidValue

CHANCE = 0.5
"""The probability with which one wave is to reach the threshold."""


def wave_size(chance: float, n: int) -> int:
    """Compute the size of a wave: the smallest that reaches the threshold with probability ``CHANCE``.

    Args:
        chance: The probability that one draw reaches the threshold, from 0 to 1.
        n: The largest size.

    Returns:
        From 1 to ``n``.
    """
    if chance >= CHANCE:
        return 1
    if chance <= 0:
        return n
    return min(n, math.ceil(math.log(1 - CHANCE) / math.log1p(-chance) - 1e-9))


def cut_waves(n: int, size: int) -> tuple[int, ...]:
    """Cut n draws into waves of one size. The last wave has what is left.

    Args:
        n: Number of draws.
        size: Size of a wave, at least 1.

    Returns:
        Sizes that add up to ``n``.
    """
    return tuple(min(size, n - start) for start in range(0, n, size))


def anchor_moments(rank: ArrayLike, samples: int, n: int) -> Floats:
    """Compute E τ^k, where τ is the quantile of the rank-th smallest of K anchors, whose law is Beta(r, K + 1 − r).

    Args:
        rank: Ranks from 0 (τ = 0) to K + 1 (τ = 1), of any shape.
        samples: K, the number of anchors.
        n: The largest number of draws.

    Returns:
        (..., n + 2) moments for k = 0..n + 1.
    """
    k = np.arange(n + 2.0)
    rank = np.asarray(rank, dtype=np.float64)[..., None]
    inner = np.clip(rank, 0.5, samples + 0.5)  # the ends would divide by zero
    moments = np.exp(betaln(inner + k, samples + 1 - inner) - betaln(inner, samples + 1 - inner))
    return np.asarray(np.where(rank < 1, k == 0, np.where(rank > samples, 1.0, moments)), dtype=np.float64)


def expect(moments: Floats, waves: Sequence[int]) -> tuple[Floats, Floats]:
    """Compute the mean best quantile and the mean number of draws of a rule that stops after whole waves.

    With m_k draws in the first k waves of the sizes w_k, wave k is drawn if the draws before it are all below τ, and
    the rule stops there if its best is above. So E[draws] = Σ_k w_k E τ^{m_{k−1}}, and

        E[best] = Σ_k w_k/(w_k + 1) (E τ^{m_{k−1}} − E τ^{m_k + 1}) + n/(n + 1) E τ^{n+1}.

    A term of the sum is ∫_τ^1 u w u^{w−1} du for the best of wave k; the last one is ∫_0^τ u n u^{n−1} du for the best
    of all n if none reaches τ.

    Args:
        moments: (..., n + 2) moments E τ^k for k = 0..n + 1.
        waves: Sizes of the waves.

    Returns:
        Mean best quantile and mean number of draws, both of shape (...).

    Raises:
        InvalidValue: The sizes are not positive, or do not add up to n.
    """
    sizes = np.asarray(waves, dtype=np.int64)
    n = moments.shape[-1] - 2
    if sizes.ndim != 1 or np.any(sizes < 1) or np.sum(sizes) != n:
        raise InvalidValue("waves", list(waves), f"sizes of at least 1 that add up to {n}")
    after = np.cumsum(sizes)
    drawn = moments[..., after - sizes]
    best = (drawn - moments[..., after + 1]) @ (sizes / (sizes + 1)) + moments[..., n + 1] * n / (n + 1)
    return np.asarray(best), np.asarray(drawn @ sizes)
