"""Stage ``rollouts``: K scored responses of the reference to every prompt, under the bundle's sampling law."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from infalign.bundle import SamplingLaw
from infalign.templates import Message, render_judged, render_prompt, tokenise
from training.progress import bar

GENERATE_BATCH, SEGMENT, SCORE_BATCH = 1024, 16, 512


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
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(directory, padding_side="left"), law)

    @torch.inference_mode()
    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = "rollouts") -> list[list[int]]:
        """One response to each prompt, as token ids, the end token included; repeat a prompt to draw more."""
        torch.manual_seed(seed)
        tokens = [tokenise(self.tokenizer, render_prompt(self.tokenizer, messages)) for messages in prompts]
        drawn: list[list[int]] = []
        with bar(stage, len(tokens)) as progress:
            for start in range(0, len(tokens), GENERATE_BATCH):
                batch = tokens[start : start + GENERATE_BATCH]
                drawn += self._draw_batch(batch)
                progress.update(len(batch))
        return drawn

    def text(self, drawn: Sequence[Sequence[int]]) -> list[str]:
        """Responses as text, without special tokens."""
        return list(self.tokenizer.batch_decode(list(drawn), skip_special_tokens=True))

    @torch.inference_mode()
    def log_probability(
        self, prompts: Sequence[Sequence[Message]], drawn: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """Log-probability of each response given its prompt, in nats, at temperature 1; shape (len(drawn),)."""
        found: list[float] = []
        for start in range(0, len(drawn), SCORE_BATCH):
            batch = drawn[start : start + SCORE_BATCH]
            asked = prompts[start : start + SCORE_BATCH]
            heads = [tokenise(self.tokenizer, render_prompt(self.tokenizer, messages)) for messages in asked]
            rows = [{"input_ids": head + list(tail)} for head, tail in zip(heads, batch, strict=True)]
            inputs = self.tokenizer.pad(rows, return_tensors="pt", padding_side="left")
            longest = max(map(len, batch))
            logits = self.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
            labels = inputs.input_ids[:, -longest:]
            picked = logits.log_softmax(dim=-1).gather(-1, labels[..., None])[..., 0]
            lengths = torch.tensor([len(tail) for tail in batch])[:, None]
            inside = torch.arange(longest)[None, :] >= longest - lengths
            found += picked.double().masked_fill(~inside, 0.0).sum(dim=1).tolist()
        return np.array(found)

    def _draw_batch(self, prompts: list[list[int]]) -> list[list[int]]:
        """Responses as token ids, in segments: a finished response leaves the batch at the end of its segment."""
        end = self.tokenizer.eos_token_id
        drawn: list[list[int]] = [[] for _ in prompts]
        unfinished = list(range(len(prompts)))
        for done in range(0, self.law.max_tokens, SEGMENT):
            if not unfinished:
                break
            texts = [{"input_ids": prompts[row] + drawn[row]} for row in unfinished]
            inputs = self.tokenizer.pad(texts, return_tensors="pt")
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


@dataclass(frozen=True)
class Scorer:
    """A reward model."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, directory: Path) -> "Scorer":
        """From a model directory."""
        model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(directory, padding_side="right"))

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float32]:
        """Raw rewards, shape (len(responses),); equal texts are scored once, so that they tie exactly."""
        texts = [render_judged(self.tokenizer, *pair) for pair in zip(prompts, responses, strict=True)]
        unique = sorted(set(texts), key=len)
        rewards: dict[str, float] = {}
        for start in range(0, len(unique), SCORE_BATCH):
            batch = unique[start : start + SCORE_BATCH]
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
            logits = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            rewards.update(zip(batch, logits[:, 0].tolist(), strict=True))
        return np.array([rewards[text] for text in texts], dtype=np.float32)


def write_rollouts(
    directory: Path,
    prompts: Sequence[Sequence[Message]],
    reference: Path,
    reward: Path,
    law: SamplingLaw,
    samples: int,
    seed: int,
) -> None:
    """Draw and score ``samples`` responses per prompt into ``rollouts.jsonl``: {prompt, responses, rewards}."""
    repeated = [messages for messages in prompts for _ in range(samples)]
    sampler = Sampler.load(reference, law)
    responses = sampler.text(sampler.draw(repeated, seed))
    rewards = Scorer.load(reward).score(repeated, responses).reshape(-1, samples).tolist()
    with (directory / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        for row, messages in enumerate(prompts):
            drawn = responses[row * samples : (row + 1) * samples]
            file.write(json.dumps({"prompt": messages, "responses": drawn, "rewards": rewards[row]}) + "\n")
