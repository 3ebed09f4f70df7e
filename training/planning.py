"""What a run would take, by estimate, before it is run: memory and time of each stage.

Memory is that of :mod:`training.memory`. Time is floating-point operations over the speed of this machine:

- Reading a token takes 2 operations for each weight of the linear layers, and of the head where there are logits. Its
  backward pass takes twice as many, or as many with adapters, and gradient checkpointing reads it once more.
- The speed is measured in half a second, on products of matrices as wide as the model's; :data:`EFFICIENCY` of it is
  what training reaches.
- A response is taken to be half as long as it may be.

So a time is good for its order of magnitude: it is given as a range of a factor of six.
"""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import memory
from training.config import Config, Lora
from training.lengths import REPORT, Lengths, read_lengths
from training.machine import available_memory, has_gpu
from training.memory import BUDGET, SHARE, Pass, draw_bytes, largest, off_policy, on_policy
from training.shapes import Shape, read_shape, reference_shape

EFFICIENCY, SPREAD = 0.4, 2.5
"""Of the speed of matrix products, on the demo; what an estimate of time is divided and multiplied by."""
SETTLING, SEGMENT, DRAWS, BATCH = 3 * 32, 16, 64, 1024
"""Draws per validation prompt in settling; tokens after which transformers reads a response again; draws per test
prompt and model; responses drawn at a time."""


@dataclass(frozen=True)
class Estimate:
    """Of one stage; None is not known."""

    memory: float | None
    """Bytes."""
    seconds: float | None


@dataclass(frozen=True)
class Sizes:
    """What estimates are made from."""

    reference: Shape
    rewards: tuple[Shape, ...]
    lengths: dict[str, Lengths]
    counts: dict[str, int]
    """Of prompts, by split."""

    @property
    def reward_bytes(self) -> int:
        """Of all reward models."""
        return sum(shape.bytes for shape in self.rewards)


def sizes(config: Config, data: Path) -> Sizes | str:
    """Those of a run whose stage ``data`` leaves the directory ``data``, or in a word why they are not known."""
    reference = reference_shape(config.model.origin)
    if reference is None:
        return f"until {config.model.base and config.model.base.path} is on this machine"
    rewards = [read_shape(classifier.path) for classifier in config.reward.classifiers]
    rewards += [reference] if config.reward.train else []
    known = tuple(shape for shape in rewards if shape)
    if len(known) < len(rewards):
        return "until the classifiers are on this machine"
    if not (data / REPORT).is_file():
        return "until the stage data has run (--until data)"
    report = json.loads((data / REPORT).read_text(encoding="utf-8"))
    counts = {split: report[f"{split}_prompts"] for split in ("train", "validation", "test")}
    return Sizes(reference, known, read_lengths(data), counts)


def passes(config: Config, of: Sizes) -> dict[str, tuple[int, Pass]]:
    """The batch of each stage that trains, and its pass."""
    found: dict[str, tuple[int, Pass]] = {}
    shape, compute, ctrl = of.reference, config.compute, config.ctrl
    if config.sft:
        found["sft"] = config.sft.batch, Pass(shape, compute, of.lengths["answer"].longest, config.sft.lora)
    if train := config.reward.train:
        longest = of.lengths["comparison"].longest
        found["reward"] = train.batch, Pass(shape, compute, longest, train.lora, sequences=2, logits=False)
    longest = of.lengths["prompt"].longest
    found["ctrl"] = (
        ctrl.prompts * ctrl.generations,
        (
            on_policy(shape, ctrl, compute, longest, of.reward_bytes)
            if ctrl.solver == "rloo"
            else off_policy(shape, ctrl, compute, longest, config.rollouts.max_tokens)
        ),
    )
    return found


def check(config: Config, data: Path, stages: Collection[str]) -> None:
    """See that each of ``stages`` fits into memory, as far as it is known, before the first is run.

    Raises:
        TooLittleMemory: one does not.
    """
    of = sizes(config, data)
    if isinstance(of, str) or config.compute.sequences:
        return
    for stage, (batch, need) in passes(config, of).items():
        if stage in stages:
            memory.check(stage, batch, need, available_memory())


def estimates(config: Config, of: Sizes) -> dict[str, Estimate]:
    """Of every stage that takes either."""
    shape, room, speed = of.reference, SHARE * available_memory(), EFFICIENCY * matrix_speed(of.reference)
    taken = {
        stage: need.bytes(config.compute.sequences or largest(batch, need, room))
        for stage, (batch, need) in passes(config, of).items()
    }
    prompt, law = of.lengths["prompt"], config.rollouts.max_tokens
    held = shape.bytes + of.reward_bytes
    batch = min(BATCH * draw_bytes(shape, prompt.longest), max(BUDGET, draw_bytes(shape, prompt.longest)))
    taken |= {"evaluate": held + shape.bytes + batch}
    if config.rollouts.engine == "transformers":
        taken |= {"rollouts": held + batch}

    read, judged = 2 * (shape.linear + shape.vocabulary * shape.hidden), sum(2 * each.linear for each in of.rewards)
    length = prompt.mean - law / 2
    drawn = read * (length if config.rollouts.engine == "vllm" else length * max(1, law / 2 / SEGMENT))
    compared = 2 * read * length
    work = {
        "rollouts": prompt.rows * config.rollouts.samples * (drawn + judged * length),
        "evaluate": of.counts["test"] * DRAWS * (2 * (drawn + judged * length) + compared),
    }
    if config.sft:
        answers = of.lengths["answer"]
        tokens = answers.rows * answers.mean * config.sft.epochs
        work["sft"] = tokens * read * _passes(config, config.sft.lora)
    if train := config.reward.train:
        comparisons = of.lengths["comparison"]
        tokens = 2 * comparisons.rows * comparisons.mean * train.epochs
        work["reward"] = tokens * 2 * shape.linear * _passes(config, train.lora)
    step = _passes(config, config.ctrl.lora) * read * length
    step += read * length + compared + judged * length if config.ctrl.solver == "rloo" else read * length
    work["ctrl"] = config.ctrl.steps * config.ctrl.prompts * config.ctrl.generations * step
    work["ctrl"] += of.counts["validation"] * SETTLING * (drawn + compared)
    return {stage: Estimate(taken.get(stage), flops / speed) for stage, flops in work.items()}


def _passes(config: Config, lora: Lora | None) -> int:
    """How many times as long as reading a token it takes to learn from it."""
    return (2 if lora else 3) + config.compute.gradient_checkpointing


def matrix_speed(shape: Shape, seconds: float = 0.5) -> float:
    """Operations per second of this machine, in products of float32 matrices; on a GPU of bfloat16 ones."""
    size = 2 * BATCH * shape.hidden * shape.intermediate
    if has_gpu():
        import torch

        kind = {"device": "cuda", "dtype": torch.bfloat16}
        left, right = torch.ones(BATCH, shape.hidden, **kind), torch.ones(shape.hidden, shape.intermediate, **kind)

        def multiply() -> None:
            left @ right
            torch.cuda.synchronize()
    else:
        a, b = (np.ones(sides, np.float32) for sides in ((BATCH, shape.hidden), (shape.hidden, shape.intermediate)))

        def multiply() -> None:
            a @ b

    multiply()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        multiply()
        count += 1
    return count * size / elapsed


def as_range(seconds: float) -> str:
    """A time for people, as far as it is known."""
    low, high = seconds / SPREAD, seconds * SPREAD
    unit, name = next(((size, name) for size, name in ((3600, "h"), (60, "min")) if high >= 2 * size), (1, "s"))
    return f"{_rounded(low / unit)}–{_rounded(high / unit)} {name}"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.1g}'):g}"
