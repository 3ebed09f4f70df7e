"""Estimates the memory and the time of each stage before a run.

Memory is estimated by :mod:`training.memory`. Time is the number of floating-point operations over the speed of this
machine:

- To read a token takes 2 operations per weight of the linear layers, and of the head where there are logits. The
  backward pass takes twice as many, or as many if adapters are trained. Gradient checkpointing reads once more.
- The speed is measured for half a second, on products of matrices as wide as the model's. Training reaches
  :data:`EFFICIENCY` of it.
- A response is assumed to be half as long as it may be.

A time is therefore good for its order of magnitude, and it is given as a range of a factor of six.
"""

import json
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import memory
from training.config import Config, Lora
from training.lengths import REPORT, Lengths, read_lengths
from training.machine import available_memory, has_gpu
from training.memory import (
    SHARE,
    Pass,
    batch_budget,
    draw_and_compare_pass,
    draw_bytes,
    largest_part,
    off_policy_pass,
    on_policy_pass,
)
from training.shapes import Shape, read_shape, reference_shape

EFFICIENCY, SPREAD = 0.4, 2.5
"""Share of the speed of matrix products that training reaches on the demo, and the factor of a time's range."""
SETTLING, DRAWS, KL_DRAWS, SCORED, BATCH = 3 * 32, 64, 16, 32, 1024
"""Constants of the stages.

These are the draws per validation prompt while the policy settles, the draws per test prompt and model where the config
does not say how many, those of them that the KL is measured on, the rollouts per validation prompt that a prefix scorer
is measured on, and the responses that are drawn at a time.
"""


@dataclass(frozen=True)
class StageEstimate:
    """Estimate for one stage. None means unknown."""

    memory: float | None
    """Bytes."""
    seconds: float | None
    """Seconds."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run that the estimates are computed from."""

    reference: Shape
    """Shape of the reference."""
    rewards: tuple[Shape, ...]
    """Shapes of the reward models."""
    lengths: dict[str, Lengths]
    """Lengths of the sequences, by kind."""
    counts: dict[str, int]
    """Number of prompts, by split."""

    @property
    def trunk(self) -> Shape:
        """Shape of what a prefix scorer starts from: the larger of the two models that it may be."""
        if len(self.rewards) == 1 and self.rewards[0].bytes > self.reference.bytes:
            return self.rewards[0]
        return self.reference

    @property
    def reward_bytes(self) -> int:
        """Bytes of all reward models together."""
        return sum(shape.bytes for shape in self.rewards)


def read_sizes(config: Config, data: Path) -> Sizes | str:
    """Read the sizes of a run.

    Args:
        config: Config of the run.
        data: Directory of the stage ``data``, which may not exist yet.

    Returns:
        The sizes, or a phrase that says until when they are unknown.
    """
    reference = reference_shape(config.model.origin)
    if reference is None:
        return f"until {config.model.base and config.model.base.path} is on this machine"
    rewards = [read_shape(model.path) for model in config.reward.given_models]
    rewards += [reference] * (bool(config.reward.train) + len(config.reward.reference_judges))
    reward_shapes = tuple(shape for shape in rewards if shape)
    if len(reward_shapes) < len(rewards):
        return "until the reward models are on this machine"
    if not (data / REPORT).is_file():
        return "until the stage data has run (--until data)"
    report = json.loads((data / REPORT).read_text(encoding="utf-8"))
    counts = {split: report[f"{split}_prompts"] for split in ("train", "validation", "test")}
    return Sizes(reference, reward_shapes, read_lengths(data), counts)


def estimate_passes(config: Config, sizes: Sizes) -> dict[str, tuple[int, Pass]]:
    """Describe the passes of every stage that trains.

    Args:
        config: Config of the run.
        sizes: Sizes of the run.

    Returns:
        The batch and the pass, by the name of the stage.
    """
    result: dict[str, tuple[int, Pass]] = {}
    shape, compute, ctrl = sizes.reference, config.compute, config.ctrl
    if config.sft:
        result["sft"] = config.sft.batch, Pass(shape, compute, sizes.lengths["answer"].longest, config.sft.lora)
    if train := config.reward.train:
        longest = sizes.lengths["comparison"].longest
        result["reward"] = train.batch, Pass(shape, compute, longest, train.lora, sequences=2, logits=False)
    if scorer := config.scorer:
        longest = sizes.lengths["prompt"].longest
        result["scorer"] = scorer.batch, Pass(sizes.trunk, compute, longest, scorer.lora, logits=False)
    if ctrl is None:
        return result
    longest = sizes.lengths["prompt"].longest
    response = config.rollouts.max_tokens
    need = {
        "ctrl": draw_and_compare_pass(shape, ctrl, compute, longest, response, sizes.reward_bytes),
        "rloo": on_policy_pass(shape, ctrl, compute, longest, sizes.reward_bytes),
        "regression": off_policy_pass(shape, ctrl, compute, longest, response),
    }
    result["ctrl"] = ctrl.prompts * ctrl.generations, need[ctrl.solver]
    return result


def check_stages(config: Config, data: Path, stages: Collection[str]) -> None:
    """Check, before the first of them runs, that stages fit into memory. Unknown sizes are not checked.

    Args:
        config: Config of the run.
        data: Directory of the stage ``data``.
        stages: Names of the stages that will run.

    Raises:
        TooLittleMemory: A stage does not fit.
    """
    sizes = read_sizes(config, data)
    if isinstance(sizes, str) or config.compute.sequences:
        return
    for stage, (batch, need) in estimate_passes(config, sizes).items():
        if stage in stages:
            memory.check_memory(stage, batch, need, available_memory())


def estimate_stages(config: Config, sizes: Sizes) -> dict[str, StageEstimate]:
    """Estimate memory and time of every stage that takes much of either.

    Args:
        config: Config of the run.
        sizes: Sizes of the run.

    Returns:
        Estimates by the name of the stage.
    """
    shape, room, speed = sizes.reference, SHARE * available_memory(), EFFICIENCY * measure_speed(sizes.reference)
    stage_bytes = {
        stage: need.bytes(config.compute.sequences or largest_part(batch, need, room))
        for stage, (batch, need) in estimate_passes(config, sizes).items()
    }
    prompt, law = sizes.lengths["prompt"], config.rollouts.max_tokens
    model_bytes = shape.bytes + sizes.reward_bytes
    batch = min(BATCH * draw_bytes(shape, prompt.longest), max(batch_budget(), draw_bytes(shape, prompt.longest)))
    if config.evaluation:
        stage_bytes |= {"evaluate": model_bytes + shape.bytes + batch}
    if config.validation_judge and config.ctrl:
        stage_bytes |= {"judge": model_bytes + shape.bytes + batch}
    if config.rollouts.engine == "transformers":
        stage_bytes |= {"rollouts": model_bytes + batch}

    read_work, judge_work = (
        2 * (shape.linear + shape.vocabulary * shape.hidden),
        sum(2 * each.linear for each in sizes.rewards),
    )
    length = prompt.mean - law / 2
    draw_work = read_work * law / 2  # both engines read a prompt once for all its responses
    compare_work = 2 * read_work * length
    sample_work = draw_work + judge_work * length
    work = {"rollouts": prompt.rows * config.rollouts.samples * sample_work}
    if evaluation := config.evaluation:
        tested, draws = min(sizes.counts["test"], evaluation.prompts or math.inf), evaluation.draws or DRAWS
        work["evaluate"] = tested * (2 * draws * sample_work + min(draws, KL_DRAWS) * compare_work)
    if config.ctrl and (judge := config.validation_judge):
        work["judge"] = sizes.counts["validation"] * judge.draws * sample_work
    if config.sft:
        answers = sizes.lengths["answer"]
        tokens = answers.rows * answers.mean * config.sft.epochs
        work["sft"] = tokens * read_work * _work_factor(config, config.sft.lora)
    if train := config.reward.train:
        comparisons = sizes.lengths["comparison"]
        tokens = 2 * comparisons.rows * comparisons.mean * train.epochs
        work["reward"] = tokens * 2 * shape.linear * _work_factor(config, train.lora)
    if scorer := config.scorer:
        responses = sizes.counts["train"] * min(scorer.responses, config.rollouts.samples) * scorer.epochs
        measured = sizes.counts["validation"] * min(SCORED, config.rollouts.samples)
        factor = _work_factor(config, scorer.lora)
        work["scorer"] = (responses * factor + measured) * length * 2 * sizes.trunk.linear
    if ctrl := config.ctrl:
        step = _work_factor(config, ctrl.lora) * read_work * length
        step += draw_work + compare_work + judge_work * length if ctrl.solver != "regression" else read_work * length
        work["ctrl"] = ctrl.steps * ctrl.prompts * ctrl.generations * step
        work["ctrl"] += sizes.counts["validation"] * SETTLING * (draw_work + compare_work)
    return {stage: StageEstimate(stage_bytes.get(stage), flops / speed) for stage, flops in work.items()}


def estimate_seconds(config: Config, data: Path, stages: Collection[str]) -> dict[str, float]:
    """Estimate how long stages will take.

    Args:
        config: Config of the run.
        data: Directory of the stage ``data``.
        stages: Names of the stages that will run.

    Returns:
        Seconds by the name of the stage. Stages of which nothing is known, or which take no time, are left out.
    """
    sizes = read_sizes(config, data)
    if isinstance(sizes, str) or not stages:
        return {}
    estimates = estimate_stages(config, sizes)
    return {stage: estimate.seconds for stage, estimate in estimates.items() if stage in stages and estimate.seconds}


def _work_factor(config: Config, lora: Lora | None) -> int:
    """How many times as long as reading a token it takes to learn from it."""
    return (2 if lora else 3) + config.compute.gradient_checkpointing


def measure_speed(shape: Shape, seconds: float = 0.5) -> float:
    """Measure the speed of this machine on products of matrices: float32 on a CPU, bfloat16 on a GPU.

    The fastest product counts. Others may have waited for programs that run beside it.

    Args:
        shape: Shape of the model, for the width of the matrices.
        seconds: How long to measure.

    Returns:
        Floating-point operations per second.
    """
    size = 2 * BATCH * shape.hidden * shape.intermediate
    if has_gpu():
        import torch

        kind = {"device": "cuda", "dtype": torch.bfloat16}
        a, b = torch.ones(BATCH, shape.hidden, **kind), torch.ones(shape.hidden, shape.intermediate, **kind)

        def multiply() -> None:
            a @ b
            torch.cuda.synchronize()
    else:
        a, b = (np.ones(sides, np.float32) for sides in ((BATCH, shape.hidden), (shape.hidden, shape.intermediate)))

        def multiply() -> None:
            a @ b

    multiply()
    fastest, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        multiply()
        fastest = min(fastest, time.perf_counter() - start)
    return size / fastest


def as_range(seconds: float) -> str:
    """Format a time as a range, for people."""
    low, high = seconds / SPREAD, seconds * SPREAD
    unit, name = next(((size, name) for size, name in ((3600, "h"), (60, "min")) if high >= 2 * size), (1, "s"))
    return f"{_round(low / unit)}–{_round(high / unit)} {name}"


def _round(value: float) -> str:
    return f"{float(f'{value:.1g}'):g}"
