"""Estimates how much memory a training pass takes, and chooses how much of a batch is done at a time.

A pass is one forward and backward computation. The estimate adds up, in bytes:

- the weights, and for each trained weight a float32 gradient and the optimiser's two moments; with bfloat16 products
  also a copy of the weights
- what the backward pass keeps of every token and layer: 40 h + 16 i in float32, or 33 h + 8 i with bfloat16 products,
  where h is the hidden and i the intermediate size, and an attention mask of 4 bytes per token. The numbers were
  counted on Llamas of several shapes with ``torch.autograd.graph.saved_tensors_hooks``. Gradient checkpointing keeps
  this of one layer at a time, and 4 h of every layer
- the same amount again for one layer, while its gradient is computed
- the logits: TRL computes those of 4,096 tokens by 32,768 entries at a time, in about seven copies on a CPU

A fifth is added to the sum, so the estimate is rather too high than too low.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infalign.errors import InvalidValue, TooLittleMemory
from training import processes
from training.config import Compute, Ctrl, Lora
from training.machine import available_memory, gpu_memory, keep_freed_memory
from training.shapes import Shape, shape_of

MEMORY = "memory.json"
"""File that says how much of a batch was done at a time."""
FLOAT = 4
"""Bytes of a float32."""
GRADIENT_AND_MOMENTS = 4 + 8
"""Bytes of the gradient and the optimiser's moments of a trained weight."""
LOGITS_TOKENS, LOGITS_ENTRIES, LOGITS_COPIES = 4096, 32768, 7
"""Tokens and vocabulary entries whose logits TRL computes at a time, and copies of them."""
OVERHEAD, SHARE = 1.2, 0.8
"""Factor on the estimate, and share of the available memory that may be used."""
BUDGET, GPU_SHARE = 2 << 30, 8
"""Bytes that a batch of draws or scores may take beside the models on a CPU, and the part of a GPU's memory there."""
SMALL = 1 << 30
"""Bytes of a step. Below this, freed memory is kept, which is faster but leaves more of it unused."""
ENGINE_SHARE, CPU_KV_CACHE = 0.3, 512 << 20
"""Share of a GPU's memory that a vLLM engine beside a training takes, and bytes of its cache on a CPU."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a stage over part of its batch."""

    shape: Shape
    """Shape of the model."""
    compute: Compute
    """How the trainer uses the machine."""
    length: int
    """Tokens of the longest sequence."""
    lora: Lora | None
    """Adapters that are trained, or None if all weights are."""
    sequences: int = 1
    """Sequences per row of the batch; a comparison has two."""
    logits: bool = True
    """Whether TRL computes the logits of the next tokens."""
    response: int = 0
    """Tokens of a sequence whose logits are all held at once."""
    others: int = 0
    """Bytes of the other models that the stage holds."""
    step: int = 0
    """Bytes that a step needs before its passes, in order to draw from the policy."""

    @property
    def fixed_bytes(self) -> int:
        """Bytes that do not depend on how many rows are done at a time."""
        trainable = self.shape.weights
        weights = self.shape.bytes
        if self.lora:
            trainable = self.shape.adapter(self.lora)
            weights += FLOAT * trainable
        copies = 2 * self.shape.weights if self.compute.precision == "bfloat16" and self.shape.weight > 2 else 0
        return weights + GRADIENT_AND_MOMENTS * trainable + copies + self.others

    def bytes(self, items: int) -> int:
        """Estimate the bytes of a step.

        Args:
            items: Rows of the batch that are done at a time.
        """
        tokens = items * self.sequences * self.length
        layer = layer_bytes(self.shape, self.compute) + FLOAT * self.length
        per_layer = FLOAT * self.shape.hidden if self.compute.gradient_checkpointing else layer
        work = tokens * (self.shape.layers * per_layer + 2 * layer)
        if self.logits:
            vocabulary = min(self.shape.vocabulary, LOGITS_ENTRIES)
            work += min(tokens, LOGITS_TOKENS) * vocabulary * FLOAT * LOGITS_COPIES
        work += items * self.response * self.shape.vocabulary * FLOAT * LOGITS_COPIES
        return int(OVERHEAD * (self.fixed_bytes + max(work, self.step)))


def layer_bytes(shape: Shape, compute: Compute) -> int:
    """Estimate the bytes that the backward pass keeps of one token in one layer."""
    hidden = max(shape.hidden, shape.queries)
    if compute.precision == "bfloat16":
        return 33 * hidden + 8 * shape.intermediate
    return 40 * hidden + 16 * shape.intermediate


def model_shape(model: Any) -> Shape:
    """Return the shape of a loaded model. If it is unknown, all sizes are zero, so that nothing is bounded by it."""
    return shape_of(model.config.to_dict()) or Shape(0, 0, 0, 0, 0, 0)


def forward_bytes(shape: Shape, tokens: int) -> int:
    """Estimate the bytes to read one sequence of ``tokens`` tokens without gradients, in its widest layer."""
    return FLOAT * tokens * (6 * max(shape.hidden, shape.queries) + 4 * shape.intermediate)


def draw_bytes(shape: Shape, tokens: int) -> int:
    """Estimate the bytes to draw one response, including its key-value cache and the draw of a token.

    Args:
        shape: Shape of the model.
        tokens: Tokens of the prompt and the response together.
    """
    cache = shape.weight * tokens * 2 * shape.layers * shape.keys
    return forward_bytes(shape, tokens) + cache + 8 * FLOAT * shape.vocabulary


def compare_bytes(shape: Shape, tokens: int, response: int) -> int:
    """Estimate the bytes to compare two models' distributions at every token of a response.

    Args:
        shape: Shape of the models.
        tokens: Tokens of the prompt and the response together.
        response: Tokens of the response.
    """
    return forward_bytes(shape, tokens) + 5 * FLOAT * response * shape.vocabulary


def batch_budget() -> int:
    """Return how many bytes a batch of draws or scores may take beside the models.

    Which responses are drawn depends on the batch, so the number must not depend on what other programs use. On a CPU
    it is :data:`BUDGET`. A GPU draws other responses than a CPU anyway, and small batches leave it idle. There it is an
    eighth of the GPU's memory, rounded down to a power of two, but at least :data:`BUDGET`. GPUs of one kind agree.
    """
    return max(BUDGET, 1 << max(0, (gpu_memory() // GPU_SHARE).bit_length() - 1))


def batches(rows: Sequence[Row], most: int, size: Callable[[Row], int]) -> Iterator[Sequence[Row]]:
    """Split rows into batches, in order.

    A batch is as large as :func:`batch_budget` allows, but at least one row. Rows of a batch are padded, so each of
    them is counted with the size of the largest.

    Args:
        rows: Rows to split.
        most: Rows of a batch at most.
        size: Bytes that a row takes.

    Yields:
        Batches of consecutive rows.
    """
    start, budget = 0, batch_budget()
    while start < len(rows):
        end, widest = start, 0
        while end < len(rows) and end - start < most:
            widest = max(widest, size(rows[end]))
            if end > start and widest * (end - start + 1) > budget:
                break
            end += 1
        yield rows[start:end]
        start = end


def on_policy_pass(shape: Shape, config: Ctrl, compute: Compute, length: int, rewards: int) -> Pass:
    """Describe a pass of the solver ``rloo``, which draws all responses of a step at once.

    Args:
        shape: Shape of the policy.
        config: How the policy is trained.
        compute: How the trainer uses the machine.
        length: Tokens of the longest sequence.
        rewards: Bytes of the reward models.
    """
    draws = config.prompts * config.generations // processes.count()
    reference = 0 if config.lora else shape.bytes
    return Pass(shape, compute, length, config.lora, others=reference + rewards, step=draws * draw_bytes(shape, length))


def off_policy_pass(shape: Shape, config: Ctrl, compute: Compute, length: int, response: int) -> Pass:
    """Describe a pass of the solver ``regression``, which holds the reference and all logits of the responses.

    Args:
        shape: Shape of the policy.
        config: How the policy is trained.
        compute: How the trainer uses the machine.
        length: Tokens of the longest sequence.
        response: Tokens of the longest response.
    """
    return Pass(shape, compute, length, config.lora, logits=False, response=response, others=shape.bytes)


def draw_and_compare_pass(
    shape: Shape, config: Ctrl, compute: Compute, length: int, response: int, rewards: int
) -> Pass:
    """Describe a pass of the solver ``ctrl``, which holds all logits of the responses of a pass.

    Args:
        shape: Shape of the policy.
        config: How the policy is trained.
        compute: How the trainer uses the machine.
        length: Tokens of the longest sequence.
        response: Tokens of the longest response.
        rewards: Bytes of the reward models.
    """
    others = rewards + (0 if config.lora else shape.bytes)
    if config.engine == "vllm":
        others += int(ENGINE_SHARE * gpu_memory()) or shape.bytes + CPU_KV_CACHE
    return Pass(shape, compute, length, config.lora, logits=False, response=response, others=others)


def prompt_bytes(shape: Shape, compute: Compute, prompts: int, length: int) -> int:
    """Estimate the bytes that the backward pass keeps of prompts that are read once for all their responses.

    Args:
        shape: Shape of the policy.
        compute: How the trainer uses the machine.
        prompts: Prompts that are read together.
        length: Tokens of the longest.
    """
    return int(OVERHEAD * prompts * length * shape.layers * (layer_bytes(shape, compute) + FLOAT * length))


def fit_sequences(directory: Path, stage: str, batch: int, need: Pass, process_count: int = 1) -> int:
    """Choose how many rows of a batch a process does at a time, and say so in one line on stderr and in a file.

    The config decides with ``compute.sequences``. If it leaves that out, the largest number that fits is chosen.

    Args:
        directory: Directory of the stage, for ``memory.json``.
        stage: Name of the stage, for messages.
        batch: Rows of a step, over all processes.
        need: What a pass takes.
        process_count: Processes that train together and take equally many rows.

    Returns:
        Rows per process and pass.

    Raises:
        InvalidValue: ``compute.sequences`` does not divide the batch.
        TooLittleMemory: Not even one row fits.
    """
    share, setting = batch // process_count, need.compute.sequences
    if batch % process_count or not share or (setting and share % min(setting, share)):
        accepted = f"a divisor of the batch of {batch} in {stage}, shared by {process_count} processes"
        raise InvalidValue("compute.sequences", setting, accepted)
    free = available_memory()
    if process_count > 1:
        free = processes.broadcast(free)
    if not setting:
        check_memory(stage, batch, need, free)
    each = min(setting, share) if setting else largest_part(share, need, SHARE * free)
    keep_freed_memory(need.bytes(each) < SMALL)
    if processes.is_first():
        print(
            f"{stage}: {each} of {batch} at a time, of up to {need.length} tokens; "
            f"estimated memory {gigabytes(need.bytes(each))}, available {gigabytes(free)}",
            file=sys.stderr,
        )
        record = {"batch": batch, "sequences": each, "longest": need.length, "estimated_bytes": need.bytes(each)}
        (directory / MEMORY).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return each


def largest_part(batch: int, need: Pass, room: float) -> int:
    """Find the largest divisor of a batch whose pass fits.

    Args:
        batch: Rows of a step and process.
        need: What a pass takes.
        room: Bytes that a pass may take.

    Returns:
        Rows per pass; 1 if no other number fits.
    """
    return next((each for each in range(batch, 1, -1) if batch % each == 0 and need.bytes(each) <= room), 1)


def check_memory(stage: str, batch: int, need: Pass, free: int) -> None:
    """Check that one row of a stage's batch fits.

    Args:
        stage: Name of the stage.
        batch: Rows of a step, for the message.
        need: What a pass takes.
        free: Bytes that are available.

    Raises:
        TooLittleMemory: It does not fit. The message says which settings help.
    """
    if need.bytes(1) <= SHARE * free:
        return
    key = {"reward": "reward.train"}.get(stage, stage)
    helps = {
        "fewer positions of the model": True,
        "fewer ctrl.prompts or ctrl.generations": need.step > 0,
        f"{key}.lora": need.lora is None,
        "compute.gradient_checkpointing=true": not need.compute.gradient_checkpointing,
        "compute.precision=bfloat16": need.compute.precision != "bfloat16",
    }
    raise TooLittleMemory(
        f"{stage}: one of a batch of {batch}, of up to {need.length} tokens, takes an estimated "
        f"{gigabytes(need.bytes(1))}, more than {SHARE:.0%} of the available memory of {gigabytes(free)}; what helps: "
        f"{', '.join(name for name, does in helps.items() if does)}; compute.sequences=1 tries it regardless"
    )


def gigabytes(size: float) -> str:
    """Format a number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e9:.2f} GB"
