"""What a prefix scorer learns from: scored rollouts, with the bins of their quantiles and rewards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infalign.arrays import Floats
from infalign.combination import Combination
from infalign.errors import InvalidValue
from infalign.templates import prompt_key, render_prompt, tokenise
from training.data import read_prompts
from training.rollouts import read_rollouts
from training.supervised import UNCOUNTED, Row


@dataclass(frozen=True)
class ScoredPrompt:
    """The rollouts of one prompt."""

    tokens: list[int]
    """Token ids of the prompt."""
    responses: list[list[int]]
    """Token ids of K responses."""
    rewards: Floats
    """(K,) rewards: the raw ones of a single reward model, or the combined ones of several."""
    quantiles: Floats
    """(K,) quantiles of the responses among themselves."""


def read_scored_prompts(
    data: Path, split: str, rollouts: Path, tokenizer: Any, combination: Combination
) -> list[ScoredPrompt]:
    """Read the rollouts of the prompts of a split.

    Args:
        data: Directory of the stage ``data``.
        split: ``train`` or ``validation``.
        rollouts: Directory of the stage ``rollouts``.
        tokenizer: Tokenizer of the reference.
        combination: The calibration tables, and how they are combined.

    Raises:
        InvalidValue: The split has no prompt.
    """
    wanted = {prompt_key(render_prompt(tokenizer, messages)) for messages in read_prompts(data, split)}
    found = []
    for row in read_rollouts(rollouts):
        rendering = render_prompt(tokenizer, row.prompt)
        key = prompt_key(rendering)
        if key in wanted:
            rewards = combination.combine([key], row.reward_matrix[None])[0]
            quantiles = combination.table.quantile([key], rewards[None])[0]
            found.append(ScoredPrompt(tokenise(tokenizer, rendering), row.tokens, rewards, quantiles))
    if not found:
        raise InvalidValue("scorer", f"no {split} prompts", f"a run whose data has {split} prompts")
    return found


def find_edges(prompts: Sequence[ScoredPrompt], bins: int) -> tuple[float, ...]:
    """Find the rewards that split those of all prompts into bins of equal probability.

    Args:
        prompts: The rollouts.
        bins: B, the number of bins.

    Returns:
        B + 1 rewards in increasing order, with the lowest and the highest of all.
    """
    rewards = np.concatenate([prompt.rewards for prompt in prompts])
    return tuple(np.quantile(rewards, np.linspace(0, 1, bins + 1)).tolist())


def count_rewards(rewards: Floats, edges: Sequence[float]) -> NDArray[np.int_]:
    """Count the rewards in each bin.

    Args:
        rewards: Rewards of a prompt.
        edges: (B + 1,) rewards between which the bins lie.

    Returns:
        (B,) counts. The outermost bins count what lies beyond them.
    """
    return np.bincount(np.searchsorted(edges[1:-1], rewards, side="right"), minlength=len(edges) - 1)


def make_rows(prompts: Sequence[ScoredPrompt], responses: int, edges: Sequence[float]) -> Iterator[Row]:
    """Make the rows that the scorer learns from.

    Args:
        prompts: The rollouts.
        responses: Responses of each prompt at most.
        edges: (B + 1,) rewards between which the bins lie.

    Yields:
        For each response that is not empty ``input_ids``, with the prompt; ``labels``, the bin of the quantile at each
        token of the response; and ``counts``, how many responses to the prompt have a reward in each bin.
    """
    bins = len(edges) - 1
    for prompt in prompts:
        counts = count_rewards(prompt.rewards, edges).tolist()
        places = np.minimum((prompt.quantiles * bins).astype(int), bins - 1).tolist()
        for tokens, place in list(zip(prompt.responses, places, strict=True))[:responses]:
            if tokens:
                labels = [UNCOUNTED] * len(prompt.tokens) + [place] * len(tokens)
                yield {"input_ids": [*prompt.tokens, *tokens], "labels": labels, "counts": counts}
