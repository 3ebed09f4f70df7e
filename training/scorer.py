"""Reward models that score responses, and the one reward that they are combined to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from infalign.bundle import reward_models
from infalign.combination import Combination
from infalign.templates import Message, prompt_key, render_judged, render_prompt, tokenise
from training.memory import batches, forward_bytes, model_shape
from training.models import load_classifier

SCORE_BATCH = 512


@dataclass(frozen=True)
class Scorer:
    """A reward model, or a judge.

    A classifier on a causal LM is read at the last token of a text, as vLLM reads it. What it or its tokenizer pads
    with makes no difference.
    """

    model: Any
    tokenizer: Any
    output: int = 0
    """Which of its outputs is the reward."""

    @classmethod
    def load(cls, directory: Path) -> "Scorer":
        """From a model directory."""
        return cls(load_classifier(directory), AutoTokenizer.from_pretrained(directory, trust_remote_code=False))

    def read(self, prompt: Sequence[Message], response: str) -> tuple[int, ...]:
        """The token ids that the model reads."""
        return tuple(tokenise(self.tokenizer, render_judged(self.tokenizer, prompt, response)))

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float32]:
        """Raw rewards, shape (len(responses),); equal texts are scored once, so that they tie exactly."""
        texts = [self.read(*pair) for pair in zip(prompts, responses, strict=True)]
        unique = sorted(set(texts), key=lambda tokens: (len(tokens), tokens))
        rewards: dict[tuple[int, ...], float] = {}
        shape = model_shape(self.model)
        for batch in batches(unique, SCORE_BATCH, lambda tokens: forward_bytes(shape, len(tokens))):
            rewards.update(zip(batch, self._outputs(batch), strict=True))
        return np.array([rewards[tokens] for tokens in texts], dtype=np.float32)

    @torch.inference_mode()
    def _outputs(self, batch: Sequence[tuple[int, ...]]) -> list[float]:
        """The output for each text, all in one padded batch.

        The library reads a causal classifier at the last token that is not the config's padding. So the batch is
        padded with a token that no text in it ends with, which the config names for as long as it takes.
        """
        ends = {tokens[-1] for tokens in batch}
        vocabulary = self.model.get_input_embeddings().num_embeddings
        padding = next(token for token in range(vocabulary) if token not in ends)
        rows = [torch.tensor(tokens, device=self.model.device) for tokens in batch]
        config = self.model.config.get_text_config()
        usual, config.pad_token_id = config.pad_token_id, padding
        try:
            logits = self.model(
                input_ids=pad_sequence(rows, batch_first=True, padding_value=padding),
                attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            ).logits
        finally:
            config.pad_token_id = usual
        return list(logits[:, self.output].float().tolist())


@dataclass(frozen=True)
class Scorers:
    """All reward models of a run or a bundle, by name, in the order of their calibrations."""

    models: dict[str, Scorer]

    @classmethod
    def load(cls, directory: Path) -> "Scorers":
        """From a directory that is a model or holds several."""
        return cls({name: Scorer.load(model) for name, model in reward_models(directory).items()})

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.float32]:
        """Raw rewards, shape (len(responses), M)."""
        return np.stack([scorer.score(prompts, responses) for scorer in self.models.values()], axis=1)


@dataclass(frozen=True)
class CombinedScorer:
    """What everything after calibration sees as the reward."""

    scorers: Scorers
    combination: Combination
    tokenizer: Any
    """The reference's, by whose rendering the calibrations know a prompt."""

    @classmethod
    def load(cls, directory: Path, combination: Combination, reference: Path) -> "CombinedScorer":
        """The reward models in ``directory``, on the quantiles of ``combination``."""
        return cls(
            Scorers.load(directory), combination, AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
        )

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> NDArray[np.floating[Any]]:
        """Rewards, shape (len(responses),): combined, or of one model its raw ones."""
        rewards = self.scorers.score(prompts, responses)
        if self.combination.models == 1:
            return rewards[:, 0]
        keys = [prompt_key(render_prompt(self.tokenizer, messages)) for messages in prompts]
        return self.combination.combine(keys, rewards)
