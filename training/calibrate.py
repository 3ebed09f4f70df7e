"""Stage ``calibrate``: the scored rollouts as a calibration table that names what it was made with."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from infalign.bundle import directory_digest, save_calibration
from infalign.calibration import CalibrationTable, Estimator
from infalign.manifest import CalibrationRecord, SamplingLaw
from infalign.templates import prompt_key, render_prompt, template_hash
from training.rollouts import read_rollouts

RESOLUTION = 1e-4


def write_calibration(directory: Path, rollouts: Path, reference: Path, reward: Path, law: SamplingLaw) -> None:
    """Write table and record of the stage's rollouts into ``directory``."""
    tokenizer = AutoTokenizer.from_pretrained(reference)
    keys, rewards = [], []
    for row in read_rollouts(rollouts):
        keys.append(prompt_key(render_prompt(tokenizer, row.prompt)))
        rewards.append(row.rewards)
    table = CalibrationTable(
        tuple(keys),
        np.array(rewards, dtype=np.float64),
        Estimator.JEFFREYS,
        RESOLUTION,
    )
    record = CalibrationRecord(
        reference=directory_digest(reference),
        reward_model=directory_digest(reward),
        chat_template=template_hash(tokenizer),
        sampling=law,
        samples=table.samples,
        prompts=len(table),
        estimator=table.estimator,
        resolution=table.resolution,
    )
    save_calibration(directory, table, record)
