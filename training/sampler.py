"""Draws responses from a causal LM with transformers, and compares the distributions of two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from infalign.manifest import SamplingLaw
from infalign.templates import Message, render_prompt, tokenise
from training.memory import batches, compare_bytes, draw_bytes, model_shape
from training.models import WithoutAdapter, is_adapter, load_causal, put_adapter
from training.progress import make_bar

GENERATE_BATCH, SEGMENT, COMPARE_BATCH = 1024, 16, 256
"""Responses drawn at a time, tokens until finished responses leave the batch, and responses compared at a time."""


class InverseCdfSampler(LogitsProcessor):  # type: ignore[misc]
    """A logits processor that samples a token and leaves only that token possible.

    It needs one uniform number per row. Greedy decoding after it returns the sample. torch.multinomial draws a random
    number for every entry of the vocabulary instead, which took half of the generation time on a CPU.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        uniform = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, uniform, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


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
    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = "rollouts") -> list[list[int]]:
        """Draw one response to each prompt. To draw several, repeat the prompt.

        Args:
            prompts: Conversations.
            seed: Seed of the draws.
            stage: Name that the progress bar shows.

        Returns:
            Token ids of each response, with the end token unless the response was cut off.
        """
        torch.manual_seed(seed)
        tokens = [tokenise(self.tokenizer, render_prompt(self.tokenizer, messages)) for messages in prompts]
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

    def _draw_batch(self, prompts: list[list[int]]) -> list[list[int]]:
        """Draw responses in segments. A response that has ended leaves the batch at the end of its segment."""
        end = self.tokenizer.eos_token_id
        responses: list[list[int]] = [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        for start in range(0, self.law.max_tokens, SEGMENT):
            if not open_rows:
                break
            texts = [{"input_ids": prompts[row] + responses[row]} for row in open_rows]
            inputs = self.tokenizer.pad(texts, return_tensors="pt").to(self.model.device)
            output = self.model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                do_sample=False,
                logits_processor=self._law_processors(),
                max_new_tokens=min(SEGMENT, self.law.max_tokens - start),
            )
            segments = output[:, inputs.input_ids.shape[1] :].tolist()
            for row, segment in zip(open_rows, segments, strict=True):
                responses[row] += segment[: segment.index(end) + 1] if end in segment else segment
            open_rows = [row for row in open_rows if responses[row][-1] != end]
        return responses

    def _law_processors(self) -> LogitsProcessorList:
        law = self.law
        processors = LogitsProcessorList()
        if law.temperature != 1:
            processors.append(TemperatureLogitsWarper(law.temperature))
        if law.top_k:
            processors.append(TopKLogitsWarper(law.top_k))
        if law.top_p < 1:
            processors.append(TopPLogitsWarper(law.top_p))
        processors.append(InverseCdfSampler())
        return processors


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
    rows = [{"input_ids": [*head, *tail]} for head, tail in zip(prompts, responses, strict=True)]
    inputs = tokenizer.pad(rows, return_tensors="pt", padding_side="left").to(model.device)
    mask = _response_mask(inputs, responses)
    logits = _response_logits(model, inputs, mask)
    labels = inputs.input_ids[:, -mask.shape[1] :][mask]
    token_logs = logits.log_softmax(dim=-1).gather(-1, labels[:, None])[:, 0]
    return token_logs.new_zeros(mask.shape).masked_scatter(mask, token_logs).sum(dim=1)


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

    tokens = [tokenise(policy.tokenizer, render_prompt(policy.tokenizer, messages)) for messages in prompts]
    for batch in batches(list(zip(tokens, responses, strict=True)), COMPARE_BATCH, size):
        heads, tails = zip(*batch, strict=True)
        rows = [{"input_ids": [*head, *tail]} for head, tail in zip(heads, tails, strict=True)]
        inputs = policy.tokenizer.pad(rows, return_tensors="pt", padding_side="left").to(policy.model.device)
        mask = _response_mask(inputs, tails)
        ours, theirs = (
            _response_logits(model, inputs, mask).log_softmax(dim=-1) for model in (policy.model, reference.model)
        )
        each = torch.zeros(mask.shape, device=mask.device)
        each[mask] = (ours.exp() * (ours - theirs)).sum(dim=-1)
        kl += each.double().sum(dim=1).tolist()
    return np.array(kl)
