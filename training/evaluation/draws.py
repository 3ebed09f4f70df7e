"""Fresh scored responses of policy and reference to the same prompts: what an evaluation is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from infalign.templates import Message
from training.judges import Judge
from training.sampler import Sampler, sequence_kl
from training.scorer import CombinedScorer

Floats = NDArray[np.float64]


class Drawer(Protocol):
    """Whatever draws responses: transformers or vLLM."""

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = ...) -> list[list[int]]:
        """One response to each prompt, as token ids, the end token included; repeat a prompt to draw more."""


@dataclass(frozen=True)
class Side:
    """Responses of one model, M to each of P prompts."""

    rewards: Floats
    """(P, M), by the reward that selects."""
    judged: Floats | None
    """(P, M), by a judge that is independent of it."""


@dataclass(frozen=True)
class Draws:
    """Both sides, and how far the policy is from the reference."""

    policy: Side
    reference: Side
    kl: Floats
    """(P,), nats per response."""


DRAWS = "draws.safetensors"


def save_draws(directory: Path, draws: Draws) -> None:
    """Every figure of every response, for whoever wants other statistics than ours."""
    tensors = {"policy": draws.policy.rewards, "reference": draws.reference.rewards, "kl": draws.kl}
    for name, side in (("policy_judged", draws.policy), ("reference_judged", draws.reference)):
        if side.judged is not None:
            tensors[name] = side.judged
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, directory / DRAWS)


def load_draws(directory: Path) -> Draws:
    """Read what :func:`save_draws` wrote."""
    tensors = load_file(directory / DRAWS)
    policy, reference = (Side(tensors[name], tensors.get(f"{name}_judged")) for name in ("policy", "reference"))
    return Draws(policy, reference, tensors["kl"])


def collect(
    policy: Sampler,
    reference: Sampler,
    scorer: CombinedScorer,
    judge: Judge | None,
    prompts: Sequence[Sequence[Message]],
    draws: int,
    seed: int,
    drawers: tuple[Drawer, Drawer] | None = None,
) -> Draws:
    """Draw ``draws`` responses per prompt from both models, by ``drawers`` if given, and score them."""
    repeated = [messages for messages in prompts for _ in range(draws)]
    ours, theirs = drawers or (policy, reference)
    drawn = ours.draw(repeated, seed, "policy")
    kl = sequence_kl(policy, reference, repeated, drawn).reshape(-1, draws).mean(axis=1)

    def side(tokens: list[list[int]]) -> Side:
        texts = policy.text(tokens)
        rewards = scorer.score(repeated, texts).astype(np.float64).reshape(-1, draws)
        return Side(rewards, judge(repeated, texts).reshape(-1, draws) if judge else None)

    return Draws(side(drawn), side(theirs.draw(repeated, seed + 1, "reference")), kl)
