"""Splits a budget of draws over prompts: more for those whose best response gains more by further draws.

This is AdaBoN (arXiv 2505.12050). It draws some responses to each prompt to learn how the rewards are spread. Here the
prefix scorer predicts that, so nothing is drawn.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from infalign.arrays import Floats
from infalign.budgets import allocate_draws, expected_best
from infalign.quantile_law import QuantileLaw
from server.concurrency import gather_all
from server.decoding.prefixes import Prefixes
from server.decoding.reader import Conversation, Reader
from server.errors import BadRequest


@dataclass(frozen=True)
class Allocation:
    """The draws of P prompts, and what they are worth by the prediction."""

    draws: list[int]
    """Draws of each prompt."""
    rewards: list[float]
    """Expected reward of the best response to each prompt."""
    means: list[float]
    """Expected reward of one response to each prompt."""
    even_reward: float
    """Expected reward of the best response, on average over the prompts, if each had as many draws as the others."""


async def allocate(
    reader: Reader, prefixes: Prefixes, conversations: Mapping[str, Conversation], total: int, least: int, most: int
) -> Allocation:
    """Split a budget of draws over prompts, so that the expected rewards of the best responses add up to the most.

    Args:
        reader: Tokenizes prompts.
        prefixes: Reads prompts with the prefix scorer.
        conversations: The prompts, by the field of the request that each comes from.
        total: Draws for all prompts together, at least ``least`` for each.
        least: The fewest draws of a prompt.
        most: The most draws of a prompt.

    Raises:
        PromptTooLong: A prompt does not fit the context.
        BadRequest: The chat template does not accept the messages of one.
        EngineError: The prefix scorer is alive but failed at a prompt.
        Unavailable: The prefix scorer is not up, or has died.
    """

    async def predict(field: str, conversation: Conversation) -> Floats:
        try:
            prompt = await reader.read(conversation, 0)
        except BadRequest as error:
            raise type(error)(f"{field}: {error}", field) from error
        return await prefixes.read(prompt.tokens)

    outputs = np.array(await gather_all([predict(*item) for item in conversations.items()]))
    law, edges = prefixes.scorer.reward_law(outputs), prefixes.scorer.edges
    return await asyncio.to_thread(_allocate, law, edges, total, least, most)


def _allocate(law: QuantileLaw, edges: Floats, total: int, least: int, most: int) -> Allocation:
    best, prompts = expected_best(law, edges, most), len(law.probabilities)
    total = min(total, most * prompts)
    draws = allocate_draws(law, edges, total, most, least)
    rewards = np.take_along_axis(best, draws[:, None] - 1, axis=1)[:, 0]
    even, rest = divmod(total, prompts)
    means = best.mean(axis=0)
    even_reward = means[even - 1] + (means[min(even, most - 1)] - means[even - 1]) * rest / prompts
    return Allocation(draws.tolist(), rewards.tolist(), best[:, 0].tolist(), float(even_reward))
