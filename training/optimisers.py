"""The optimiser of every stage: Muon for weight matrices, Adam for all that is none."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam, Optimizer

OTHERS = 0.3
"""Learning rate of Adam's part, as a share of Muon's, where a policy is moved a little; 1 for training."""
MOMENTUM, ITERATIONS = 0.95, 5
A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of the Newton–Schulz iteration, those of torch.optim.Muon."""


class Muon(Optimizer):  # type: ignore[misc]
    """Muon (Jordan et al., 2024) as torch.optim.Muon, but all matrices of a shape at once and in float32.

    torch's runs its iteration in bfloat16, matrix by matrix; older processors emulate that, eight times as slow.
    Steps are scaled to the size of Adam's.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(tuple(sorted(weight.shape)), []).append(weight)
            for (short, long), weights in shapes.items():
                updates = []
                for weight in weights:
                    state = self.state[weight]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(weight.grad)
                    state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
                    update = weight.grad.lerp(state["momentum_buffer"], MOMENTUM)
                    updates.append(update if weight.shape[0] == short else update.mT)
                orthogonal = orthogonalised(torch.stack(updates).float())
                for weight, update in zip(weights, orthogonal, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    turned = update if weight.shape[0] == short else update.mT
                    weight.sub_(turned.to(weight.dtype), alpha=group["lr"] * 0.2 * math.sqrt(long))


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """All singular values of each of (k, short, long) brought near one."""
    found = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        square = found @ found.mT
        factor = torch.baddbmm(square, square, square, beta=B, alpha=C)
        found = torch.baddbmm(found, factor, found, beta=A)
    return found


class MuonAdam(Optimizer):  # type: ignore[misc]
    """Muon on matrices between layers; Adam on embeddings, heads, norms and biases.

    Adam moves every weight by about the learning rate, also where the gradient is all noise; Muon moves every
    singular direction of a matrix alike. At equal KL the latter wins more for the same samples (docs/LOG.md).
    Its updates are scaled to the size of Adam's, so that learning rates of the two compare.
    """

    def __init__(
        self, model: torch.nn.Module, learning_rate: float, weight_decay: float = 0.0, others: float = OTHERS
    ) -> None:
        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                inner = weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "score"))
                (matrices if inner else rest).append(weight)
        self.parts: tuple[Optimizer, ...] = tuple(
            part
            for part in (
                matrices and Muon(matrices, lr=learning_rate, weight_decay=weight_decay),
                rest and Adam(rest, lr=others * learning_rate, betas=(0.9, 0.98)),
            )
            if part
        )
        super().__init__([{"params": [*matrices, *rest]}], {"lr": learning_rate})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of both."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """That of both, for checkpoints."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
