"""Draws responses from a causal LM with transformers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TopKLogitsWarper, TopPLogitsWarper

from infalign.manifest import SamplingLaw
from infalign.templates import Message, render_prompt, tokenise
from training.memory import batches, draw_bytes, model_shape
from training.models import WithoutAdapter, is_adapter, load_causal, merged_adapter, put_adapter
from training.progress import make_bar
from training.reference_judge import next_logprobs

GENERATE_BATCH, SEGMENT = 1024, 8
"""Responses drawn at a time, and tokens until finished responses leave the batch."""


def sample_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Sample a token from each row of logits.

    It inverts the cumulative distribution function, which takes one uniform number per row. torch.multinomial draws one
    for every token of the vocabulary instead, which took half of the time on a CPU. Tokens are summed block by block,
    and only the block that the sample is in is searched: that is faster, and exact in float32.

    Args:
        logits: Logits of shape (B, vocabulary). A token with -inf is never drawn.

    Returns:
        Tokens of shape (B,).
    """
    vocabulary = logits.shape[1]
    width = 1 << (vocabulary.bit_length() // 2)
    weights = torch.nn.functional.pad(logits.float().softmax(dim=-1), (0, -vocabulary % width)).unflatten(
        1, (-1, width)
    )
    masses = weights.sum(dim=-1)
    cumulative = masses.double().cumsum(dim=-1)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device) * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, uniform, right=True).clamp_(max=masses.shape[1] - 1)
    mass = masses.gather(1, block)
    share = (uniform - cumulative.gather(1, block) + mass) / mass
    inside = weights[torch.arange(len(logits), device=logits.device), block[:, 0]].double().cumsum(dim=-1)
    # A share of 1, by rounding, would be beyond the last token that is possible.
    place = torch.searchsorted(inside, share.clamp_(0, 1 - 1e-12) * inside[:, -1:], right=True)
    return (block * width + place)[:, 0]


@dataclass(frozen=True)
class Sampler:
    """A causal LM that draws responses."""

    model: Any
    """The model, ready for inference."""
    tokenizer: Any
    """Its tokenizer, which pads on the left."""
    law: SamplingLaw
    """The sampling law: temperature, top-p, top-k and the length limit."""

    @classmethod
    def load(cls, directory: Path, law: SamplingLaw) -> "Sampler":
        """Load a sampler.

        Args:
            directory: Directory of the model.
            law: Sampling law.
        """
        return cls(
            load_causal(directory),
            AutoTokenizer.from_pretrained(directory, padding_side="left", trust_remote_code=False),
            law,
        )

    @torch.inference_mode()
    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str | None = "rollouts") -> list[list[int]]:
        """Draw one response to each prompt. To draw several, repeat the prompt.

        Args:
            prompts: Conversations.
            seed: Seed of the draws.
            stage: Name that the progress bar shows; None shows no bar.

        Returns:
            Token ids of each response, with the end token unless the response was cut off.
        """
        torch.manual_seed(seed)
        tokens = tokenise_prompts(self.tokenizer, prompts)
        by_length = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        responses: list[list[int]] = [[] for _ in tokens]
        shape = model_shape(self.model)

        def size(row: int) -> int:
            return draw_bytes(shape, len(tokens[row]) + self.law.max_tokens)

        with make_bar(stage, len(tokens)) as progress:
            for rows in batches(by_length, GENERATE_BATCH, size):
                for row, response in zip(rows, self._draw_batch([tokens[row] for row in rows]), strict=True):
                    responses[row] = response
                progress.update(len(rows))
        return responses

    def text(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Convert responses to text, without special tokens.

        Args:
            responses: Token ids.
        """
        return list(self.tokenizer.batch_decode(list(responses), skip_special_tokens=True))

    def next_logprobs(self, texts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[float]]:
        """Compute the log-probabilities of some tokens as the next one of each text.

        Args:
            texts: Token ids of each text.
            tokens: The tokens.

        Returns:
            Log-probabilities, in nats, of shape (len(texts), len(tokens)).
        """
        return next_logprobs(self.model, texts, tokens)

    def _draw_batch(self, prompts: list[list[int]]) -> list[list[int]]:
        inputs = self.tokenizer.pad([{"input_ids": tokens} for tokens in prompts], return_tensors="pt")
        return draw_responses(
            self.model,
            inputs.to(self.model.device),
            self.law.max_tokens,
            [self.tokenizer.eos_token_id],
            self._choose,
        )

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Sample a token by the law from each row of logits."""
        law = self.law
        if law.temperature != 1:
            logits = logits / law.temperature
        if law.top_k:
            logits = TopKLogitsWarper(law.top_k)(None, logits)
        if law.top_p < 1:
            logits = TopPLogitsWarper(law.top_p)(None, logits)
        return sample_tokens(logits)


def draw_responses(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    max_tokens: int,
    ends: Sequence[int],
    choose: Callable[[torch.Tensor], torch.Tensor] = sample_tokens,
) -> list[list[int]]:
    """Draw one response to each prompt of a batch, faster than transformers alone does.

    The model reads equal prompts once. Responses are drawn in segments: one that has ended leaves the batch at the end
    of its segment, and the others keep their key-value cache.

    Args:
        model: A causal LM, ready for inference.
        inputs: ``input_ids`` and ``attention_mask`` of the prompts, padded on the left, both of shape (B, width).
        max_tokens: Most tokens of a response.
        ends: Tokens that end a response.
        choose: Chooses the next tokens, (rows,), from logits, (rows, vocabulary).

    Returns:
        Token ids of each response, with the end token unless the response was cut off.
    """
    ids = inputs["input_ids"]
    # A GPU draws from a small model as fast as operations can be started. Coarser weights than float32 would round the
    # adapter away.
    is_merged = ids.is_cuda and model.dtype == torch.float32
    with merged_adapter(model) if is_merged else nullcontext():
        return _draw_segments(model, ids, inputs["attention_mask"], max_tokens, ends, choose)


def _draw_segments(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_tokens: int,
    ends: Sequence[int],
    choose: Callable[[torch.Tensor], torch.Tensor],
) -> list[list[int]]:
    """Draw one response to each prompt, a segment at a time."""
    responses: list[list[int]] = [[] for _ in ids]
    cache, last, open_rows = _read_prompts(model, ids, mask), ids[:, -1:], list(range(len(ids)))
    for start in range(0, max_tokens, SEGMENT):
        segment = []
        for _ in range(min(SEGMENT, max_tokens - start)):
            output = model(
                input_ids=last,
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            cache, last = output.past_key_values, choose(output.logits[:, -1])[:, None]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            segment.append(last)
        still_open = []
        for place, (row, tokens) in enumerate(zip(open_rows, torch.cat(segment, dim=1).tolist(), strict=True)):
            length = next((length for length, token in enumerate(tokens, 1) if token in ends), None)
            responses[row] += tokens[:length]
            if length is None:
                still_open.append(place)
        if not still_open:
            break
        if len(still_open) < len(open_rows):
            places = torch.tensor(still_open, device=ids.device)
            last, mask = last[places], mask[places]
            cache.reorder_cache(places)
            open_rows = [open_rows[place] for place in still_open]
    return responses


def tokenise_prompts(tokenizer: Any, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Tokenise prompts. One that is repeated, as the same object, is rendered once.

    Args:
        tokenizer: The tokenizer, with its chat template.
        prompts: Conversations.

    Returns:
        Token ids of each prompt.
    """
    tokens: dict[int, list[int]] = {}
    for messages in prompts:
        if id(messages) not in tokens:
            tokens[id(messages)] = tokenise(tokenizer, render_prompt(tokenizer, messages))
    return [tokens[id(messages)] for messages in prompts]


def _read_prompts(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """Read all tokens of the prompts but the last into a key-value cache, equal prompts once."""
    if ids.shape[1] == 1:
        return None
    unique, rows = torch.unique(torch.cat([ids, mask], dim=1), dim=0, return_inverse=True)
    unique_ids, unique_mask = unique.split(ids.shape[1], dim=1)
    cache = model(
        input_ids=unique_ids[:, :-1],
        attention_mask=unique_mask[:, :-1],
        position_ids=(unique_mask.cumsum(dim=1) - 1).clamp_(min=0)[:, :-1],
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.reorder_cache(rows)
    return cache


def load_policy(policy: Path, reference: Path, law: SamplingLaw) -> Sampler:
    """Load a policy alone. The reference is read only if the policy is an adapter on it.

    Args:
        policy: Directory of the policy: a model, or an adapter on the reference.
        reference: Directory of the reference.
        law: Sampling law.
    """
    if not is_adapter(policy):
        return Sampler.load(policy, law)
    base = Sampler.load(reference, law)
    return Sampler(put_adapter(policy, base.model), base.tokenizer, law)


def load_pair(policy: Path, reference: Path, law: SamplingLaw) -> tuple[Sampler, Sampler]:
    """Load policy and reference. If the policy is an adapter, both share one copy of the reference's weights.

    Args:
        policy: Directory of the policy: a model, or an adapter on the reference.
        reference: Directory of the reference.
        law: Sampling law of both.

    Returns:
        Policy and reference.
    """
    theirs = Sampler.load(reference, law)
    if not is_adapter(policy):
        return Sampler.load(policy, law), theirs
    both = put_adapter(policy, theirs.model)
    return Sampler(both, theirs.tokenizer, law), Sampler(WithoutAdapter(both), theirs.tokenizer, law)
