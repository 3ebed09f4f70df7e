"""Stage ``calibrate``: the scored rollouts as calibration tables that name what they were made with.

A few of the rollouts are kept whole beside the tables, by which whoever runs the reward models can check them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from infalign.bundle import directory_digest, reward_models, save_calibration
from infalign.calibration import CalibrationTable, Estimator
from infalign.combination import Combination
from infalign.manifest import CalibrationRecord, RewardRecord, SamplingLaw
from infalign.reproduction import RewardExample, save_examples
from infalign.templates import prompt_key, render_prompt, template_hash
from training.rollouts import read_rollouts

RESOLUTION = 1e-4
SHOWN = 8
"""Responses that are kept whole."""


def write_calibration(
    directory: Path, rollouts: Path, reference: Path, reward: Path, law: SamplingLaw, weights: Mapping[str, float]
) -> None:
    """Write tables and record of the stage's rollouts into ``directory``; ``weights`` are those of several models."""
    tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
    keys, rewards, lengths = [], [], []
    for row in read_rollouts(rollouts):
        keys.append(prompt_key(render_prompt(tokenizer, row.prompt)))
        rewards.append(row.scored)
        lengths.append([2 * len(tokens) + (tokens[-1:] != [tokenizer.eos_token_id]) for tokens in row.tokens])
    models = reward_models(reward)
    tables = [
        CalibrationTable(tuple(keys), of_model, Estimator.JEFFREYS, RESOLUTION)
        for of_model in np.moveaxis(np.array(rewards), -1, 0)
    ]
    named = {}
    if len(models) > 1:
        named = {name: RewardRecord(digest=directory_digest(at), weight=weights[name]) for name, at in models.items()}
    combination = Combination(tuple(tables), tuple(model.weight for model in named.values()) or (1.0,))
    table = tables[0]
    record = CalibrationRecord(
        reference=directory_digest(reference),
        reward_model=directory_digest(reward),
        reward_models=named or None,
        chat_template=template_hash(tokenizer),
        sampling=law,
        samples=table.samples,
        prompts=len(table),
        estimator=table.estimator,
        resolution=table.resolution,
    )
    save_calibration(directory, combination, record)
    save_examples(directory, _examples(rollouts, np.array(lengths), list(models)))


def _examples(rollouts: Path, lengths: NDArray[np.int_], models: Sequence[str]) -> list[RewardExample]:
    """Responses from the shortest to the longest, the last of them cut off by the length limit if any was.

    ``lengths`` are those of (P, K) responses, in half tokens: one that was cut off counts half a token more.
    """
    order = np.argsort(lengths, axis=None, kind="stable")
    chosen = order[np.linspace(0, order.size - 1, min(SHOWN, order.size)).round().astype(int)]
    places = {divmod(int(place), lengths.shape[1]) for place in chosen}
    return [
        RewardExample(
            prompt=tuple(row.prompt),
            response=row.responses[k],
            rewards=dict(zip(models, row.scored[k].tolist(), strict=True)),
        )
        for number, row in enumerate(read_rollouts(rollouts))
        for k in range(lengths.shape[1])
        if (number, k) in places
    ]
