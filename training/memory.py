"""Memory: what a training pass takes, by estimate; what there is; and how much is done at a time so that it fits.

The estimate counts, in bytes:

- weights, and of those that are trained a float32 gradient and two moments; with bfloat16 products a copy of them
- what the backward pass needs of every token and layer: 40 h + 16 i in float32, 33 h + 8 i with bfloat16 products,
  where h is the hidden and i the intermediate size, and an attention mask of 4 bytes a token. Counted on Llamas of
  several shapes by ``torch.autograd.graph.saved_tensors_hooks``. With gradient checkpointing one layer at a time, and
  4 h of each
- as much again of one layer, while its gradient is computed
- logits: TRL computes them 4,096 tokens by 32,768 entries at a time, in some seven copies on a CPU

and adds a fifth. It is meant to be too high rather than too low.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from infalign.errors import InvalidValue, TooLittleMemory
from training import processes
from training.config import Compute, Ctrl, Lora
from training.machine import available_memory, keep_freed_memory
from training.shapes import Shape, shape_of

FLOAT = 4
TRAINED = 4 + 8
"""Bytes of gradient and moments of a weight that is trained."""
LOGITS_TOKENS, LOGITS_ENTRIES, LOGITS_COPIES = 4096, 32768, 7
OVERHEAD, SHARE = 1.2, 0.8
"""Factor on what is counted; share of the available memory that is planned with."""
BUDGET = 2 << 30
"""Bytes that a batch of draws or scores may take beside the models. Not measured: which responses are drawn depends on
the batch, and must not depend on the machine."""
SMALL = 1 << 30
"""Bytes of a step below which freed memory is kept: quicker, and more of it lies idle between what is in use."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a stage over some of its batch."""

    shape: Shape
    compute: Compute
    length: int
    """Tokens of the longest sequence."""
    lora: Lora | None
    sequences: int = 1
    """Per item of the batch: 2 of a comparison."""
    logits: bool = True
    """Whether TRL computes next-token logits."""
    response: int = 0
    """Tokens of a sequence at which all logits are held at once."""
    others: int = 0
    """Bytes of the other models that the stage holds."""
    step: int = 0
    """Bytes that a step takes before its passes, to draw from the policy."""

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on how much is done at a time."""
        trained = self.shape.weights
        weights = self.shape.bytes
        if self.lora:
            trained = self.shape.adapter(self.lora)
            weights += FLOAT * trained
        copies = 2 * self.shape.weights if self.compute.precision == "bfloat16" and self.shape.weight > 2 else 0
        return weights + TRAINED * trained + copies + self.others

    def bytes(self, items: int) -> int:
        """Of a step that does ``items`` of its batch at a time."""
        tokens = items * self.sequences * self.length
        layer = layer_bytes(self.shape, self.compute) + FLOAT * self.length
        kept = FLOAT * self.shape.hidden if self.compute.gradient_checkpointing else layer
        work = tokens * (self.shape.layers * kept + 2 * layer)
        if self.logits:
            vocabulary = min(self.shape.vocabulary, LOGITS_ENTRIES)
            work += min(tokens, LOGITS_TOKENS) * vocabulary * FLOAT * LOGITS_COPIES
        work += items * self.response * self.shape.vocabulary * FLOAT * LOGITS_COPIES
        return int(OVERHEAD * (self.fixed + max(work, self.step)))


def layer_bytes(shape: Shape, compute: Compute) -> int:
    """What the backward pass needs of one token and layer."""
    hidden = max(shape.hidden, shape.queries)
    if compute.precision == "bfloat16":
        return 33 * hidden + 8 * shape.intermediate
    return 40 * hidden + 16 * shape.intermediate


def model_shape(model: Any) -> Shape:
    """That of a loaded model; all zero, so that it bounds nothing, where it is not known."""
    return shape_of(model.config.to_dict()) or Shape(0, 0, 0, 0, 0, 0)


def forward_bytes(shape: Shape, tokens: int) -> int:
    """What one sequence of so many tokens takes while it is read, without gradients: the widest layer."""
    return FLOAT * tokens * (6 * max(shape.hidden, shape.queries) + 4 * shape.intermediate)


def draw_bytes(shape: Shape, tokens: int) -> int:
    """What a response takes that ends, with its prompt, at so many tokens: with its cache, and the draw of a token."""
    cache = shape.weight * tokens * 2 * shape.layers * shape.keys
    return forward_bytes(shape, tokens) + cache + 8 * FLOAT * shape.vocabulary


def compare_bytes(shape: Shape, tokens: int, response: int) -> int:
    """What a sequence takes of which two models' distributions at every token of the response are compared."""
    return forward_bytes(shape, tokens) + 5 * FLOAT * response * shape.vocabulary


def batches(rows: Sequence[Row], most: int, size: Callable[[Row], int]) -> Iterator[Sequence[Row]]:
    """``rows`` in order, ``most`` at a time, or as many as :data:`BUDGET` is enough for; at least one.

    ``size`` is what a row takes in bytes; rows of a batch are padded, so that each takes what the largest does.
    """
    start = 0
    while start < len(rows):
        end, widest = start, 0
        while end < len(rows) and end - start < most:
            widest = max(widest, size(rows[end]))
            if end > start and widest * (end - start + 1) > BUDGET:
                break
            end += 1
        yield rows[start:end]
        start = end


def on_policy(shape: Shape, config: Ctrl, compute: Compute, length: int, rewards: int) -> Pass:
    """The pass of ``rloo``, which draws a step's responses all at once; ``rewards`` are the bytes of reward models."""
    draws = config.prompts * config.generations // processes.count()
    reference = 0 if config.lora else shape.bytes
    return Pass(shape, compute, length, config.lora, others=reference + rewards, step=draws * draw_bytes(shape, length))


def off_policy(shape: Shape, config: Ctrl, compute: Compute, length: int, response: int) -> Pass:
    """The pass of ``regression``, which holds the reference beside an adapter too, and all logits of the responses."""
    return Pass(shape, compute, length, config.lora, logits=False, response=response, others=shape.bytes)


def sequences(stage: str, batch: int, need: Pass, sharing: int = 1) -> int:
    """How many of ``batch`` a process takes at a time: as ``compute.sequences`` says, or else as many as fit.

    ``sharing`` processes train together, and take equally many. Says in one line on stderr what was chosen.

    Raises:
        InvalidValue: ``compute.sequences`` does not divide the batch.
        TooLittleMemory: not even one of the batch fits.
    """
    share, given = batch // sharing, need.compute.sequences
    if batch % sharing or not share or (given and share % min(given, share)):
        accepted = f"a divisor of the batch of {batch} in {stage}, shared by {sharing} processes"
        raise InvalidValue("compute.sequences", given, accepted)
    free = available_memory()
    if sharing > 1:
        free = processes.agree(free)
    if not given:
        check(stage, batch, need, free)
    each = min(given, share) if given else largest(share, need, SHARE * free)
    keep_freed_memory(need.bytes(each) < SMALL)
    if processes.is_first():
        print(
            f"{stage}: {each} of {batch} at a time, of up to {need.length} tokens; "
            f"estimated memory {gigabytes(need.bytes(each))}, available {gigabytes(free)}",
            file=sys.stderr,
        )
    return each


def largest(batch: int, need: Pass, room: float) -> int:
    """The largest divisor of ``batch`` that can be done at a time within ``room`` bytes; 1 if none can."""
    return next((each for each in range(batch, 1, -1) if batch % each == 0 and need.bytes(each) <= room), 1)


def check(stage: str, batch: int, need: Pass, free: int) -> None:
    """See that one of a stage's batch fits into ``free`` bytes.

    Raises:
        TooLittleMemory: it does not.
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
    """For people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e9:.2f} GB"
