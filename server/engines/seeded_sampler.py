"""Seeded sampling on CPU, by one random number for a token.

vLLM 0.31 draws exponential noise for every row and every token of the vocabulary, and then once more for each row that
has a seed. With 64 rows that is 12 ms of every step for a vocabulary of 4,000 tokens, and .4 s for one of 128,000.
Inverting the distribution function takes one number from each row's own generator, and is as exact: .4 and 8 ms.

:func:`install` is called in the process of an engine. It replaces a method of vLLM, so it goes with the pinned version.
"""

from collections.abc import Mapping
from typing import Any

import torch

BLOCK = 256
"""Tokens whose probabilities are added before the place within them is looked for."""
BELOW_ONE = 1 - 2.0**-32
"""The largest number that is drawn; times a total it is below that total."""


def sample(probabilities: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """A token for each row of ``probabilities``.

    The token of a row that has a generator depends on its probabilities and that generator alone.

    Args:
        probabilities: of shape (rows, vocabulary), not negative; rows need not sum to 1.
        generators: by row, for the rows that have a seed. The others draw from torch's own generator.

    Returns:
        Token ids, of shape (rows,). A token of probability 0 is never drawn.

    Example:
        >>> sample(torch.tensor([[0.0, 1.0, 0.0]]), {0: torch.Generator().manual_seed(7)})
        tensor([1])
    """
    rows, vocabulary = probabilities.shape
    number = torch.rand(rows, 1, dtype=torch.float64)
    for row, generator in generators.items():
        number[row].uniform_(generator=generator)
    number.clamp_(max=BELOW_ONE)

    totals = _block_totals(probabilities)
    cumulative = totals.cumsum(1)
    target = number * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=totals.shape[1] - 1)
    total = totals.gather(1, block)
    share = ((target - (cumulative.gather(1, block) - total)) / total).clamp_(0, BELOW_ONE)

    tokens = block * BLOCK + torch.arange(BLOCK)
    within = probabilities.gather(1, tokens.clamp(max=vocabulary - 1)).double()
    cumulative = within.masked_fill_(tokens >= vocabulary, 0).cumsum(1)
    place = torch.searchsorted(cumulative, share * cumulative[:, -1:], right=True)
    return (block * BLOCK + place).clamp_(max=vocabulary - 1).squeeze(1)


def _block_totals(probabilities: torch.Tensor) -> torch.Tensor:
    rows, vocabulary = probabilities.shape
    whole = vocabulary // BLOCK * BLOCK
    totals = probabilities[:, :whole].view(rows, -1, BLOCK).sum(2)
    if whole < vocabulary:
        totals = torch.cat([totals, probabilities[:, whole:].sum(1, keepdim=True)], 1)
    return totals.double()


def install() -> None:
    """Have vLLM sample so in this process, in steps in which a row has a seed."""
    from vllm.config.model import PROCESSED_LOGPROBS_MODES
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

    original = TopKTopPSampler.forward_cpu

    def forward_cpu(
        self: Any, logits: torch.Tensor, generators: dict[int, torch.Generator], k: Any, p: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not generators or self.use_fp64_gumbel or self.logprobs_mode in PROCESSED_LOGPROBS_MODES:
            return original(self, logits, generators, k, p)  # type: ignore[no-any-return]
        logits = apply_top_k_top_p(logits, k, p)
        return sample(logits.softmax(dim=-1, dtype=torch.float32), generators), None

    TopKTopPSampler.forward_cpu = forward_cpu
