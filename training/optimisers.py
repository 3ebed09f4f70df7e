"""The optimiser of every stage: Muon for weight matrices, Adam for all that is none."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam, Muon, Optimizer

OTHERS = 0.3
"""Learning rate of Adam's part, as a share of Muon's."""


class MuonAdam(Optimizer):  # type: ignore[misc]
    """Muon (Jordan et al., 2024) on matrices between layers; Adam on embeddings, heads, norms and biases.

    Adam moves every weight by about the learning rate, also where the gradient is all noise; Muon moves every
    singular direction of a matrix alike. At equal KL the latter wins more for the same samples (docs/LOG.md).
    Its updates are scaled to the size of Adam's, so that learning rates of the two compare.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float = 0.0) -> None:
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                inner = weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "score"))
                (matrices if inner else others).append(weight)
        self.parts: tuple[Optimizer, ...] = tuple(
            part
            for part in (
                matrices
                and Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
                others and Adam(others, lr=OTHERS * learning_rate, betas=(0.9, 0.98)),
            )
            if part
        )
        super().__init__([{"params": [*matrices, *others]}], {"lr": learning_rate})
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
