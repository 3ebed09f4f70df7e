"""Controlled decoding: an answer that grows by the best of K blocks.

Blockwise best-of-K of Mudgal et al., Controlled Decoding, arXiv 2310.17022. K continuations of the answer so far are
drawn, each a block of tokens. A prefix scorer says which of them begins the best answer. The answer goes on from there.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.errors import InvalidValue
from infalign.procedures import FixedN


@dataclass(frozen=True, slots=True)
class Controlled:
    """Blockwise best-of-K: each block of the answer is the best of ``k``.

    It is no :class:`Procedure`. The law of its selected quantile depends on the prefix scorer and has no closed form,
    so there is no theory to train for it or to predict its win rate.

    Args:
        k: Number of continuations that each block is selected from.
        block: Tokens of a block.

    Raises:
        InvalidValue: ``k`` or ``block`` is below 1.

    Examples:
        >>> from infalign import Controlled
        >>> str(Controlled(4, 16)), round(Controlled(4, 16).kl_bound(3), 4)
        ('controlled-4x16', 1.9089)
    """

    k: int
    block: int
    family: ClassVar[str] = "controlled"
    """Name of the procedure without its numbers."""

    def __post_init__(self) -> None:
        for name in ("k", "block"):
            if getattr(self, name) < 1:
                raise InvalidValue(name, getattr(self, name), "a whole number of at least 1")

    def __str__(self) -> str:
        return f"controlled-{self.k}x{self.block}"

    def blocks(self, tokens: int) -> int:
        """Return how many blocks an answer of so many tokens has."""
        return math.ceil(tokens / self.block)

    def kl_bound(self, blocks: float) -> float:
        """Compute a bound of the KL divergence in nats from the model that is decoded.

        The best of K independent draws is within log K − (K−1)/K of their law (Beirami et al., arXiv 2401.01879). Each
        block is such a draw given those before it, so the bounds of the blocks add up (the chain rule).

        Args:
            blocks: Mean number of blocks of an answer.

        Returns:
            ``blocks`` (log K − (K−1)/K). The divergence is often far below: a scorer that cannot tell the first blocks
            apart moves the law of the answer little.
        """
        return blocks * (math.log(self.k) - (self.k - 1) / self.k)

    def ranking(self, rewards: ArrayLike) -> NDArray[np.intp]:
        """Keep several answers in the order they were drawn, as standard decoding does."""
        return np.arange(np.size(rewards))


ServedProcedure = FixedN | Controlled
"""A procedure that a server can decode by."""
