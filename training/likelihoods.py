"""Log-probabilities of responses, and the KL between two models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infalign.templates import Message
from training.memory import batches, compare_bytes, model_shape
from training.sampler import Sampler, tokenise_prompts

COMPARE_BATCH = 256
"""Responses compared at a time."""


def log_probabilities(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Compute the log-probability of each response given its prompt, at temperature 1.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids of the prompts.
        responses: Token ids of the responses.

    Returns:
        Log-probabilities in nats, of shape (len(responses),). They can be differentiated.
    """
    inputs, mask = _read(tokenizer, prompts, responses, model.device)
    logits = _response_logits(model, inputs, mask)
    labels = inputs.input_ids[:, -mask.shape[1] :][mask]
    token_logs = logits.log_softmax(dim=-1).gather(-1, labels[:, None])[:, 0]
    return token_logs.new_zeros(mask.shape).masked_scatter(mask, token_logs).sum(dim=1)


def response_logits(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Compute the logits that predict each token of each response.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids of the prompts.
        responses: Token ids of the responses.

    Returns:
        Logits of shape (tokens of all responses, vocabulary), in float32, response by response. They can be
        differentiated.
    """
    return _response_logits(model, *_read(tokenizer, prompts, responses, model.device))


def _read(
    tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: Any
) -> tuple[Any, torch.Tensor]:
    """Return inputs, padded on the left, and which of their last places hold tokens of the response."""
    rows = [{"input_ids": [*head, *tail]} for head, tail in zip(prompts, responses, strict=True)]
    inputs = tokenizer.pad(rows, return_tensors="pt", padding_side="left").to(device)
    return inputs, _response_mask(inputs, responses)


def _response_mask(inputs: Any, responses: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mark which of the last places hold tokens of the response, as (len(responses), longest)."""
    longest = max(map(len, responses))
    lengths = torch.tensor([len(tail) for tail in responses], device=inputs.input_ids.device)
    return torch.arange(longest, device=lengths.device)[None, :] >= longest - lengths[:, None]


def _response_logits(model: Any, inputs: Any, mask: torch.Tensor) -> torch.Tensor:
    """Compute the logits that predict each token of each response, as (tokens, vocabulary) in float32."""
    logits = model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=(inputs.attention_mask.cumsum(dim=1) - 1).clamp_(min=0),
        logits_to_keep=mask.shape[1] + 1,
    ).logits
    return torch.as_tensor(logits[:, :-1][mask].float())


@torch.inference_mode()
def sequence_kl(
    policy: Sampler, reference: Sampler, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Estimate the KL of the policy from the reference on responses that the policy has drawn.

    For every token, the exact KL of the next-token distributions is computed, and it is summed over the response. Its
    mean over responses is KL(π‖π_ref). This Rao–Blackwell estimate has far less variance than the mean log-ratio of the
    responses, and it is never negative. Temperature is 1.

    Args:
        policy: The policy.
        reference: The reference.
        prompts: Conversations.
        responses: A response of the policy to each of them, as token ids.

    Returns:
        KL in nats, of shape (len(responses),).
    """
    kl: list[float] = []
    shape = model_shape(policy.model)

    def size(pair: tuple[Sequence[int], Sequence[int]]) -> int:
        return compare_bytes(shape, len(pair[0]) + len(pair[1]), len(pair[1]))

    tokens = tokenise_prompts(policy.tokenizer, prompts)
    for batch in batches(list(zip(tokens, responses, strict=True)), COMPARE_BATCH, size):
        heads, tails = zip(*batch, strict=True)
        inputs, mask = _read(policy.tokenizer, heads, tails, policy.model.device)
        ours, theirs = (
            _response_logits(model, inputs, mask).log_softmax(dim=-1) for model in (policy.model, reference.model)
        )
        each = torch.zeros(mask.shape, device=mask.device)
        each[mask] = (ours.exp() * (ours - theirs)).sum(dim=-1)
        kl += each.double().sum(dim=1).tolist()
    return np.array(kl)
