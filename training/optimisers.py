"""The optimiser that all stages share: Muon for weight matrices, Adam for all other weights.

Muon (Jordan et al., 2024) replaces the step of a matrix by the nearest orthogonal matrix, so that every singular
direction moves by the same amount.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam, Optimizer

OTHERS = 0.3
"""Learning rate of Adam as a share of Muon's. It suits small moves of a policy; training from scratch uses 1."""
MOMENTUM, ITERATIONS = 0.95, 5
"""Momentum of Muon, and iterations of Newton–Schulz."""
A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of the Newton–Schulz iteration, the same as in torch.optim.Muon."""


class Muon(Optimizer):  # type: ignore[misc]
    """Muon (Jordan et al., 2024), as in torch.optim.Muon but faster on CPUs.

    All matrices of a shape are processed at once and in float32. Torch runs its iteration matrix by matrix in bfloat16,
    which older processors emulate eight times as slowly. Steps are scaled to the size of Adam's.

    Args:
        matrices: Weights with two dimensions.
        lr: Learning rate.
        weight_decay: Decay per step, times the learning rate.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step."""
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
                orthogonal = orthogonalise(torch.stack(updates).float())
                for weight, update in zip(weights, orthogonal, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    delta = update if weight.shape[0] == short else update.mT
                    weight.sub_(delta.to(weight.dtype), alpha=group["lr"] * 0.2 * math.sqrt(long))


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of each matrix near one, by the Newton–Schulz iteration.

    Args:
        matrices: Matrices of shape (count, short side, long side).

    Returns:
        Matrices of the same shape and singular vectors.
    """
    result = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        square = result @ result.mT
        factor = torch.baddbmm(square, square, square, beta=B, alpha=C)
        result = torch.baddbmm(result, factor, result, beta=A)
    return result


class MuonAdam(Optimizer):  # type: ignore[misc]
    """Muon on the matrices between layers; Adam on embeddings, heads, norms and biases.

    Adam moves every weight by about the learning rate, even where the gradient is all noise. Muon moves every singular
    direction of a matrix by the same amount. At equal KL, Muon wins more for the same samples (docs/project/log.md).

    Args:
        model: The model. Weights that need no gradient are left alone.
        learning_rate: Learning rate of Muon. Its steps have the size of Adam's, so the two can be compared.
        weight_decay: Decay of the matrices per step, times the learning rate.
        others: Learning rate of Adam as a share of Muon's.
    """

    def __init__(
        self, model: torch.nn.Module, learning_rate: float, weight_decay: float = 0.0, others: float = OTHERS
    ) -> None:
        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        embeddings = {
            id(weight)
            for module in model.modules()
            if isinstance(module, torch.nn.Embedding)
            for weight in module.parameters()
        }
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                is_head = any(part in name for part in ("embed", "lm_head", "score"))
                inner = weight.ndim == 2 and id(weight) not in embeddings and not is_head
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
        """Take one step of both optimisers."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimisers, for a checkpoint."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of both optimisers from a checkpoint."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
