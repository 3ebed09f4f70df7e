"""Reads prompts once for all responses that follow them, also where gradients are wanted.

Several responses to one prompt would otherwise read it again each, which is half of the work where prompts are as long
as responses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from training.likelihoods import response_logits


class SharedPrompts:
    """Prompts that a model has read.

    Keys and values of the prompts are cut off from their gradient. So the responses can be read in parts, each with a
    backward pass of its own. :meth:`backward` takes what has gathered in them through the prompts.

    Args:
        model: A causal LM.
        tokenizer: Its tokenizer, which pads on the left.
        prompts: Token ids of a prompt for each response. Equal ones are read once.
        is_shared: Whether to read them once at all. Gradient checkpointing cannot.
    """

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], is_shared: bool = True) -> None:
        self._model, self._tokenizer, self._prompts = model, tokenizer, prompts
        self._read: list[torch.Tensor] = []
        if not is_shared:
            return
        places: dict[tuple[int, ...], int] = {}
        self._rows = [places.setdefault(tuple(tokens), len(places)) for tokens in prompts]
        inputs = tokenizer.pad([{"input_ids": list(tokens)} for tokens in places], return_tensors="pt").to(model.device)
        self._mask = inputs.attention_mask
        output = model(
            input_ids=inputs.input_ids,
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(dim=1) - 1).clamp_(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        layers = output.past_key_values.layers
        if all(type(layer) is DynamicLayer for layer in layers):  # others do not keep all keys
            self._read = [output.logits, *(part for layer in layers for part in (layer.keys, layer.values))]
            self._cut = [part.detach().requires_grad_(part.requires_grad) for part in self._read]

    def logits(self, rows: Sequence[int], responses: Sequence[Sequence[int]]) -> torch.Tensor:
        """Compute the logits that predict each token of some responses.

        Args:
            rows: Which prompts they follow, as indices of ``prompts``.
            responses: Token ids of the responses.

        Returns:
            Logits of shape (tokens of all responses, vocabulary), in float32, response by response.
        """
        if not self._read:
            return response_logits(self._model, self._tokenizer, [self._prompts[row] for row in rows], responses)
        device = self._mask.device
        places = torch.tensor([self._rows[row] for row in rows], device=device)
        lengths = torch.tensor([len(tokens) for tokens in responses], device=device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        first, *parts = (part.index_select(0, places) for part in self._cut)
        prompt_mask = self._mask.index_select(0, places)
        logits = first
        if mask.shape[1] > 1:
            ids = pad_sequence(
                [torch.tensor(tokens[:-1], dtype=torch.long) for tokens in responses], batch_first=True
            ).to(device)
            later = self._model(
                input_ids=ids,
                attention_mask=torch.cat([prompt_mask, mask[:, 1:].to(prompt_mask.dtype)], dim=1),
                position_ids=prompt_mask.sum(dim=1, keepdim=True) + torch.arange(ids.shape[1], device=device),
                past_key_values=DynamicCache(list(zip(parts[::2], parts[1::2], strict=True))),
                use_cache=True,
            ).logits
            logits = torch.cat([first, later], dim=1)
        return torch.as_tensor(logits[mask].float())

    def backward(self) -> None:
        """Take the gradients of the responses through the prompts."""
        pairs = [(part, cut.grad) for part, cut in zip(self._read, self._cut if self._read else (), strict=True)]
        pairs = [(part, gradient) for part, gradient in pairs if gradient is not None]
        if pairs:
            torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
