"""One reward among the reference's rewards for a calibrated prompt, from the bundle, to explain what a quantile is."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from infalign.arrays import Floats
from infalign.bundle import Bundle
from infalign.calibration import Calibration
from infalign.reproduction import RewardExample
from infalign.templates import prompt_key, render_prompt
from server.protocol.session import Story

USUAL = 0.85
"""The quantile of the reward in a story without texts."""
DECIMALS = 9
"""Decimals of the rewards."""


def tell_story(bundle: Bundle, tokenizer: Any) -> Story:
    """Choose a prompt of the bundle and one answer of the reference to it.

    The answer is the shortest of the bundle's examples whose prompts are calibrated and whose quantiles are above one
    half. If there is none, or if there are several reward models, the story has no texts: it is about one of the K
    rewards of the first calibrated prompt.

    Args:
        bundle: The bundle.
        tokenizer: The policies' tokenizer.
    """
    stories = [_tell(*answer) for answer in _answers(bundle, tokenizer)]
    upper = [story for story in stories if story.quantile > 0.5]
    if upper:
        return min(upper, key=lambda story: len(story.response or ""))
    calibration = bundle.table.lookup(bundle.table.keys[0])
    rewards = _on_scale(calibration.anchors, calibration)
    return _tell(calibration, float(np.quantile(rewards, USUAL, method="lower")), None)


def read_prompts(bundle: Bundle) -> list[str]:
    """Return the prompts of the bundle's examples that are one message of the user."""
    turns = [example.prompt for example in bundle.examples]
    texts = [prompt[0]["content"] for prompt in turns if len(prompt) == 1 and prompt[0]["role"] == "user"]
    return list(dict.fromkeys(texts))


def _answers(bundle: Bundle, tokenizer: Any) -> Iterator[tuple[Calibration, float, RewardExample]]:
    """The examples whose prompts are calibrated, each with the calibration and the reward."""
    for example in bundle.examples if len(bundle.combination.tables) == 1 else ():
        key = prompt_key(render_prompt(tokenizer, list(example.prompt)))
        if key in bundle.table:
            yield bundle.table.lookup(key), next(iter(example.rewards.values())), example


def _tell(calibration: Calibration, reward: float, example: RewardExample | None) -> Story:
    low, high = calibration.interval(reward)
    return Story(
        rewards=_on_scale(calibration.anchors, calibration).tolist(),
        reward=float(_on_scale(calibration.round_to_grid(reward), calibration)),
        rank=float(calibration.rank(reward)),
        quantile=float(calibration.quantile(reward)),
        quantile_low=float(low),
        quantile_high=float(high),
        prompt=example.prompt[-1]["content"] if example else None,
        response=example.response if example else None,
    )


def _on_scale(grid: Floats, calibration: Calibration) -> Floats:
    """Multiples of a calibration's grid as rewards, so that equal ones are equal."""
    return np.round(grid * calibration.resolution, DECIMALS)
