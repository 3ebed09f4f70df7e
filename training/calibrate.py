"""Stage ``calibrate``: the scored rollouts as calibration tables that name what they were made with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from infalign.bundle import directory_digest, reward_models, save_calibration
from infalign.calibration import CalibrationTable, Estimator
from infalign.combination import Combination
from infalign.manifest import CalibrationRecord, RewardRecord, SamplingLaw
from infalign.templates import prompt_key, render_prompt, template_hash
from training.rollouts import read_rollouts

RESOLUTION = 1e-4


def write_calibration(
    directory: Path, rollouts: Path, reference: Path, reward: Path, law: SamplingLaw, weights: Mapping[str, float]
) -> None:
    """Write tables and record of the stage's rollouts into ``directory``; ``weights`` are those of several models."""
    tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
    keys, rewards = [], []
    for row in read_rollouts(rollouts):
        keys.append(prompt_key(render_prompt(tokenizer, row.prompt)))
        rewards.append(row.scored)
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
