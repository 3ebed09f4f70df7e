"""Stage ``calibrate``: turns the rewards of the rollouts into calibration tables.

A calibration table holds K rewards of the reference for each prompt. It maps the reward of a new response to its
quantile: the share of the reference's responses that have a lower reward. The stage also keeps a few rollouts as
examples. Whoever serves the reward models later can score the examples again to see that the models still agree.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from infalign.calibration import Estimator
from infalign.combination import Combination
from infalign.files import directory_digest, reward_models
from infalign.manifest import CalibrationRecord, RewardRecord, SamplingLaw
from infalign.reproduction import RewardExample, save_examples
from infalign.storage import save_calibration
from infalign.table import CalibrationTable
from infalign.templates import prompt_key, render_prompt, template_hash
from training.rollouts import read_rollouts

RESOLUTION = 1e-4
"""Rewards that are closer than this count as ties."""
EXAMPLES = 8
"""Rollouts that are kept as examples."""


def write_calibration(
    directory: Path,
    *,
    rollouts: Path,
    reference: Path,
    reward: Path,
    law: SamplingLaw,
    weights: Mapping[str, float],
    reasoning_parser: str | None = None,
) -> None:
    """Write calibration tables, their record and a few examples.

    The record names the models, the chat template and the sampling law that the tables hold for.

    Args:
        directory: Directory of the stage, which is written to.
        rollouts: Directory of the stage ``rollouts``.
        reference: Directory of the reference model.
        reward: Directory of the reward model, or of several.
        law: Sampling law that the rollouts were drawn by.
        weights: Weight of each reward model by its name. They are used only where there are several models.
        reasoning_parser: vLLM's parser that separated reasoning from the answers that were scored, if there was one.
    """
    tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
    keys, rewards, lengths = [], [], []
    for row in read_rollouts(rollouts):
        keys.append(prompt_key(render_prompt(tokenizer, row.prompt)))
        rewards.append(row.reward_matrix)
        lengths.append([2 * len(tokens) + (tokens[-1:] != [tokenizer.eos_token_id]) for tokens in row.tokens])
    models = reward_models(reward)
    tables = [
        CalibrationTable(tuple(keys), model_rewards, Estimator.JEFFREYS, RESOLUTION)
        for model_rewards in np.moveaxis(np.array(rewards), -1, 0)
    ]
    records = {}
    if len(models) > 1:
        records = {name: RewardRecord(digest=directory_digest(at), weight=weights[name]) for name, at in models.items()}
    combination = Combination(tuple(tables), tuple(model.weight for model in records.values()) or (1.0,))
    table = tables[0]
    record = CalibrationRecord(
        reference=directory_digest(reference),
        reward_model=directory_digest(reward),
        reward_models=records or None,
        chat_template=template_hash(tokenizer),
        sampling=law,
        samples=table.samples,
        prompts=len(table),
        estimator=table.estimator,
        resolution=table.resolution,
        reasoning_parser=reasoning_parser,
    )
    save_calibration(directory, combination, record)
    save_examples(directory, _pick_examples(rollouts, np.array(lengths), list(models)))


def _pick_examples(rollouts: Path, lengths: NDArray[np.int_], models: Sequence[str]) -> list[RewardExample]:
    """Responses from the shortest to the longest, the last of them cut off by the length limit if any was.

    ``lengths`` are those of (P, K) responses, in half tokens: one that was cut off counts half a token more.
    """
    order = np.argsort(lengths, axis=None, kind="stable")
    picks = order[np.linspace(0, order.size - 1, min(EXAMPLES, order.size)).round().astype(int)]
    places = {divmod(int(place), lengths.shape[1]) for place in picks}
    return [
        RewardExample(
            prompt=tuple(row.prompt),
            response=row.responses[k],
            rewards=dict(zip(models, row.reward_matrix[k].tolist(), strict=True)),
        )
        for number, row in enumerate(read_rollouts(rollouts))
        for k in range(lengths.shape[1])
        if (number, k) in places
    ]
