"""Models of a few thousand random weights, and a task that takes seconds to solve."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from infalign.manifest import SamplingLaw
from infalign.mixture import Mixture
from infalign.procedures import BestOfN
from infalign.storage import load_calibration
from infalign.transforms import Identity
from training.calibrate import write_calibration
from training.config import Compute, Ctrl, Scratch
from training.models import new_model
from training.rollouts import write_rollouts
from training.scorer import CombinedScorer
from training.shards import RolloutJob
from training.solvers import Task
from training.tokenizer import train_tokenizer

PROMPTS = [[{"role": "user", "content": f"{word}?"}] for word in "abcde"]
CTRL = Ctrl(solver="ctrl", target_kl=0.2, learning_rate=0.01, prompts=4, generations=4, steps=6)


def tiny_job(directory: Path, samples: int, max_tokens: int) -> RolloutJob:
    """Rollouts to be drawn by transformers from such a reference and scored by such a reward model."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["why and how, a b c d e"], 300)
    reference = new_model(tokenizer, Scratch(vocabulary=300, hidden=32, layers=1, positions=64))
    reward = LlamaForSequenceClassification(LlamaConfig.from_dict(reference.config.to_dict() | {"num_labels": 1}))
    for name, model in (("reference", reference), ("reward", reward)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    law = SamplingLaw(max_tokens=max_tokens)
    return RolloutJob(directory / "reference", directory / "reward", law, "transformers", samples, seed=0)


def make_tiny_task(directory: Path) -> Task:
    """A task of the solver ctrl whose models, rollouts and calibration are written into a directory."""
    job = tiny_job(directory, samples=8, max_tokens=4)
    rollouts, calibrated = directory / "rollouts", directory / "calibrated"
    rollouts.mkdir()
    write_rollouts(rollouts, PROMPTS, job, len(PROMPTS))
    write_calibration(
        calibrated, rollouts=rollouts, reference=job.reference, reward=job.reward, law=job.law, weights={}
    )
    return load_tiny_task(directory)


def load_tiny_task(directory: Path) -> Task:
    """The task that was made in a directory."""
    combination, _ = load_calibration(directory / "calibrated")
    return Task(
        directory=directory,
        prompts=PROMPTS,
        rollouts=directory / "rollouts",
        reference=directory / "reference",
        scorer=CombinedScorer.load(directory / "reward", combination, directory / "reference"),
        combination=combination,
        procedure=Mixture.of(BestOfN(2)),
        transformation=Identity(),
        law=SamplingLaw(max_tokens=4),
        config=CTRL,
        compute=Compute(save_every=2, sequences=16),
        seed=3,
    )
