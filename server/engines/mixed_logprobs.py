"""Log-probabilities of different kinds in one step of the engine.

The reference as a judge asks for the log-probabilities of given tokens, while a client's request asks for those of the
likeliest ones. If both are in one step, the sampler of vLLM 0.31 gives the client's request none but the drawn token's.
That of its newer model runner, which is the default on GPUs, does not have the fault.

An engine's process calls :func:`install`. It replaces a method of vLLM, so it depends on the pinned version.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

MOST = 20
"""Alternatives that a client's request may ask for."""


def install() -> None:
    """Let vLLM's sampler give each request in a step the log-probabilities that it asks for."""
    from vllm.v1.sample.sampler import Sampler

    original = Sampler.gather_specific_token_logprobs
    if original.__module__ != __name__:
        Sampler.gather_specific_token_logprobs = gather(original)


def gather(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Sampler.gather_specific_token_logprobs``.

    Args:
        original: The method, which fills the rows of requests for given tokens alone.

    Returns:
        A method that fills the other rows as ``Sampler.gather_logprobs`` does.
    """

    def gather_both(
        self: Any, logprobs: torch.Tensor, logprob_token_ids: Mapping[int, list[int]], sampled: torch.Tensor
    ) -> Any:
        given = original(self, logprobs, logprob_token_ids, sampled)
        rows, vocabulary = logprobs.shape
        others = [row for row in range(rows) if row not in logprob_token_ids]
        if given is None or not others:
            return given
        # The first column is the drawn token. A request reads as many of the others as it asks for.
        missing = 1 + min(MOST, vocabulary) - given.logprobs.shape[1]
        tokens = torch.nn.functional.pad(given.logprob_token_ids, (0, max(0, missing)))
        values = torch.nn.functional.pad(given.logprobs, (0, max(0, missing)), value=-torch.inf)
        likeliest = self.gather_logprobs(logprobs, min(MOST, vocabulary), token_ids=sampled)
        width = likeliest.logprobs.shape[1]
        tokens[others, :width] = likeliest.logprob_token_ids[others].to(tokens.dtype)
        values[others, :width] = likeliest.logprobs[others]
        return given._replace(logprob_token_ids=tokens, logprobs=values)

    return gather_both
