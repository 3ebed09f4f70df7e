"""A causal LM that draws responses, by transformers."""

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
from training.progress import bar

GENERATE_BATCH, SEGMENT, COMPARE_BATCH = 1024, 16, 256


class InverseCdfSampler(LogitsProcessor):  # type: ignore[misc]
    """Draws from the softmax of its input by one uniform number a row, and leaves only the drawn token.

    Greedy decoding behind it is then sampling. torch.multinomial draws an exponential variate per vocabulary
    entry, which on CPU took half of all generation time.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        uniform = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


@dataclass(frozen=True)
class Sampler:
    """A causal LM that draws responses."""

    model: Any
    tokenizer: Any
    law: SamplingLaw

    @classmethod
    def load(cls, directory: Path, law: SamplingLaw) -> "Sampler":
        """From a model directory."""
        return cls(
            load_causal(directory),
            AutoTokenizer.from_pretrained(directory, padding_side="left", trust_remote_code=False),
            law,
        )

    @torch.inference_mode()
    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = "rollouts") -> list[list[int]]:
        """One response to each prompt, as token ids, the end token included; repeat a prompt to draw more."""
        torch.manual_seed(seed)
        tokens = [tokenise(self.tokenizer, render_prompt(self.tokenizer, messages)) for messages in prompts]
        by_length = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        drawn: list[list[int]] = [[] for _ in tokens]
        shape = model_shape(self.model)

        def size(row: int) -> int:
            return draw_bytes(shape, len(tokens[row]) + self.law.max_tokens)

        with bar(stage, len(tokens)) as progress:
            for rows in batches(by_length, GENERATE_BATCH, size):
                for row, response in zip(rows, self._draw_batch([tokens[row] for row in rows]), strict=True):
                    drawn[row] = response
                progress.update(len(rows))
        return drawn

    def text(self, drawn: Sequence[Sequence[int]]) -> list[str]:
        """Responses as text, without special tokens."""
        return list(self.tokenizer.batch_decode(list(drawn), skip_special_tokens=True))

    def _draw_batch(self, prompts: list[list[int]]) -> list[list[int]]:
        """Responses as token ids, in segments: a finished response leaves the batch at the end of its segment."""
        end = self.tokenizer.eos_token_id
        drawn: list[list[int]] = [[] for _ in prompts]
        unfinished = list(range(len(prompts)))
        for done in range(0, self.law.max_tokens, SEGMENT):
            if not unfinished:
                break
            texts = [{"input_ids": prompts[row] + drawn[row]} for row in unfinished]
            inputs = self.tokenizer.pad(texts, return_tensors="pt").to(self.model.device)
            output = self.model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                do_sample=False,
                logits_processor=self._law_processors(),
                max_new_tokens=min(SEGMENT, self.law.max_tokens - done),
            )
            segments = output[:, inputs.input_ids.shape[1] :].tolist()
            for row, segment in zip(unfinished, segments, strict=True):
                drawn[row] += segment[: segment.index(end) + 1] if end in segment else segment
            unfinished = [row for row in unfinished if drawn[row][-1] != end]
        return drawn

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
    """Policy and reference; where the policy is an adapter, both on one copy of the reference's weights."""
    theirs = Sampler.load(reference, law)
    if not is_adapter(policy):
        return Sampler.load(policy, law), theirs
    both = put_adapter(policy, theirs.model)
    return Sampler(both, theirs.tokenizer, law), Sampler(WithoutAdapter(both), theirs.tokenizer, law)


def log_probabilities(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probability of each response after its prompt, both token ids, in nats, at temperature 1; differentiable."""
    rows = [{"input_ids": [*head, *tail]} for head, tail in zip(prompts, responses, strict=True)]
    inputs = tokenizer.pad(rows, return_tensors="pt", padding_side="left").to(model.device)
    inside = _response_places(inputs, responses)
    logits = _response_logits(model, inputs, inside)
    labels = inputs.input_ids[:, -inside.shape[1] :][inside]
    picked = logits.log_softmax(dim=-1).gather(-1, labels[:, None])[:, 0]
    return picked.new_zeros(inside.shape).masked_scatter(inside, picked).sum(dim=1)


def _response_places(inputs: Any, responses: Sequence[Sequence[int]]) -> torch.Tensor:
    """Which of the last places hold tokens of the response, (len(responses), longest)."""
    longest = max(map(len, responses))
    lengths = torch.tensor([len(tail) for tail in responses], device=inputs.input_ids.device)
    return torch.arange(longest, device=lengths.device)[None, :] >= longest - lengths[:, None]


def _response_logits(model: Any, inputs: Any, inside: torch.Tensor) -> torch.Tensor:
    """Next-token logits at every token of every response, (tokens, vocabulary), in float32."""
    logits = model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=(inputs.attention_mask.cumsum(dim=1) - 1).clamp_(min=0),
        logits_to_keep=inside.shape[1] + 1,
    ).logits
    return torch.as_tensor(logits[:, :-1][inside].float())


@torch.inference_mode()
def sequence_kl(
    policy: Sampler, reference: Sampler, prompts: Sequence[Sequence[Message]], drawn: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """KL of policy from reference along each response that the policy drew, in nats, shape (len(drawn),).

    The exact KL of the next-token distributions, summed over the response's tokens: its mean is KL(π‖π_ref), with far
    less variance than the log-ratio's (a Rao–Blackwell estimate), and it is never negative. At temperature 1.
    """
    found: list[float] = []
    shape = model_shape(policy.model)

    def size(pair: tuple[Sequence[int], Sequence[int]]) -> int:
        return compare_bytes(shape, len(pair[0]) + len(pair[1]), len(pair[1]))

    tokens = [tokenise(policy.tokenizer, render_prompt(policy.tokenizer, messages)) for messages in prompts]
    for batch in batches(list(zip(tokens, drawn, strict=True)), COMPARE_BATCH, size):
        heads, tails = zip(*batch, strict=True)
        rows = [{"input_ids": [*head, *tail]} for head, tail in zip(heads, tails, strict=True)]
        inputs = policy.tokenizer.pad(rows, return_tensors="pt", padding_side="left").to(policy.model.device)
        inside = _response_places(inputs, tails)
        ours, theirs = (
            _response_logits(model, inputs, inside).log_softmax(dim=-1) for model in (policy.model, reference.model)
        )
        each = torch.zeros(inside.shape, device=inside.device)
        each[inside] = (ours.exp() * (ours - theirs)).sum(dim=-1)
        found += each.double().sum(dim=1).tolist()
    return np.array(found)
