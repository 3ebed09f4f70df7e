"""Trains and measures policies, several side by side."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from experiments.gains.methods import PROCEDURES, Method
from infalign.arrays import Floats
from infalign.errors import InvalidValue
from infalign.home import home

STUDY = Path(__file__).with_name("study.yaml")
PROMPTS, DRAWS = 96, 64
"""Training prompts that a policy is measured on, and responses to each."""
BINS = 16


@dataclass(frozen=True)
class Job:
    """One policy that is trained and measured."""

    method: Method
    seed: int
    overrides: tuple[str, ...] = ()
    """Keys of the config that are changed for all methods."""


@dataclass(frozen=True)
class Measurement:
    """What a policy has reached, per prompt."""

    kl: list[float]
    """KL on test prompts, in nats per response."""
    visible_kl: float
    """KL that shows in the distribution of quantiles (:func:`visible_kl`)."""
    wins: dict[str, list[float]]
    """Win rates on test prompts by procedure, by the reward that selects."""
    judged: dict[str, list[float]]
    """The same by the judge."""
    train: dict[str, list[float]]
    """Win rates on training prompts, by the reward that selects."""
    solved: dict[str, Any]
    """What the solver says: β, the scale and the KL on validation prompts."""


def train_policy(job: Job) -> Any:
    """Train the policy of a job unless it exists, and return the :class:`training.stages.Artifacts` of its run."""
    return _run_study((*job.method.overrides(job.seed), *job.overrides), until="evaluate")


def make_reference(overrides: tuple[str, ...] = ()) -> Any:
    """Make the stages that policies share unless they exist, and return their artifacts."""
    return _run_study(overrides, until="calibrate")


def _run_study(overrides: tuple[str, ...], until: str) -> Any:
    from training.configs import load_config
    from training.pipeline import run_stages
    from training.runtime import prepare_process

    prepare_process()
    return run_stages(load_config(str(STUDY), overrides), home() / "runs", until=until)


def measure_policy(job: Job, threads: int) -> Measurement:
    """Train and measure one policy, with ``threads`` threads of torch."""
    import torch

    torch.set_num_threads(threads)
    from infalign import estimators
    from training.evaluation.draws import load_draws

    artifacts = train_policy(job)
    test, train = load_draws(artifacts.evaluation), draw_on_training_prompts(artifacts)
    ours, theirs = test.policy, test.reference
    if ours.judge_scores is None or theirs.judge_scores is None:
        raise InvalidValue("judge", None, "a judge in study.yaml")
    return Measurement(
        kl=test.kl.tolist(),
        visible_kl=visible_kl(ours.rewards, theirs.rewards),
        wins={str(p): estimators.win_rate(ours.rewards, theirs.rewards, p).tolist() for p in PROCEDURES},
        judged={
            str(p): estimators.judged_win_rate(
                ours.rewards, ours.judge_scores, theirs.rewards, theirs.judge_scores, p
            ).tolist()
            for p in PROCEDURES
        },
        train={
            str(p): estimators.win_rate(train.policy.rewards, train.reference.rewards, p).tolist() for p in PROCEDURES
        },
        solved=json.loads((artifacts.policy.parent / "solved.json").read_text(encoding="utf-8")),
    )


def draw_on_training_prompts(artifacts: Any) -> Any:
    """Draw from a policy and its reference on prompts that the policy was trained on."""
    from infalign.storage import load_calibration
    from training.data import read_prompts
    from training.evaluation import collect
    from training.sampler import load_pair
    from training.scorer import CombinedScorer

    combination, record = load_calibration(artifacts.calibration)
    reference = artifacts.reference
    prompts = read_prompts(artifacts.data, "train")
    picks = np.random.default_rng(0).choice(len(prompts), PROMPTS, replace=False)
    return collect(
        *load_pair(artifacts.policy, reference, record.sampling),
        CombinedScorer.load(artifacts.reward, combination, reference),
        None,
        [prompts[i] for i in picks],
        DRAWS,
        seed=1,
    )


def visible_kl(policy: Floats, reference: Floats) -> float:
    """Compute the KL of a policy's quantiles from the uniform distribution, in nats.

    The quantiles of all prompts share 16 bins, and the bias of so many counts is subtracted (Miller and Madow). The
    result is a lower bound of the mean over prompts, since the shares of different prompts average out.

    Args:
        policy: Rewards of the policy, of shape (P, M).
        reference: Rewards of the reference, of shape (P, M).
    """
    below = (policy[:, :, None] > reference[:, None, :]).sum(axis=2)
    ties = (policy[:, :, None] == reference[:, None, :]).sum(axis=2)
    quantiles = (below + ties / 2) / reference.shape[1]
    counts = np.histogram(quantiles, BINS, (0, 1))[0]
    share = counts / counts.sum()
    kl = float(np.sum(share * np.log(np.maximum(share * BINS, 1e-300))))
    return kl - (BINS - 1) / (2 * int(counts.sum()))


def measure_policies(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Measurement]]:
    """Train and measure policies.

    Args:
        jobs: The policies.
        workers: Policies that are trained side by side. The stages that all share are made before.

    Yields:
        Each job with its measurement, in the order in which they end.
    """
    if not jobs:
        return
    cores = os.cpu_count() or 1
    with _make_pool(1, cores) as pool:
        for overrides in dict.fromkeys(job.overrides for job in jobs):
            pool.submit(make_reference, overrides).result()
    threads = max(1, cores // workers)
    with _make_pool(workers, threads) as pool:
        futures = {pool.submit(measure_policy, job, threads): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _make_pool(workers: int, threads: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
