"""Draws: new scored responses of policy and reference to the same prompts, from which an evaluation is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from infalign.arrays import Floats
from infalign.templates import Message
from training.answers import ScoredTexts
from training.judges import Judge
from training.likelihoods import sequence_kl
from training.sampler import Sampler
from training.scorer import CombinedScorer
from training.seeds import derive_seed


class Drawer(Protocol):
    """Anything that draws responses, with transformers or with vLLM."""

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = ...) -> list[list[int]]:
        """Draw one response to each prompt. To draw several, repeat the prompt.

        Args:
            prompts: Conversations.
            seed: Seed of the draws.
            stage: Name that the progress bar shows.

        Returns:
            Token ids of each response, with the end token unless the response was cut off.
        """


@dataclass(frozen=True)
class Side:
    """The scores of one model's responses: M responses to each of P prompts."""

    rewards: Floats
    """Rewards of shape (P, M), from the reward model that selects responses."""
    judge_scores: Floats | None
    """Scores of shape (P, M), from a judge that is independent of the reward model. None without a judge."""


@dataclass(frozen=True)
class Draws:
    """The scores of policy and reference, and the distance between the two."""

    policy: Side
    """Scores of the policy's responses."""
    reference: Side
    """Scores of the reference's responses."""
    kl: Floats
    """KL of the policy from the reference, of shape (P,), in nats per response."""


DRAWS = "draws.safetensors"
"""File of the draws."""
KL_DRAWS = 16
"""Responses per prompt that the KL is measured on. More would cost time, but prompts differ more than responses do."""


def save_draws(directory: Path, draws: Draws) -> None:
    """Save all scores, so that other statistics can be computed from them later.

    Args:
        directory: Directory that is written to.
        draws: The draws.
    """
    tensors = {"policy": draws.policy.rewards, "reference": draws.reference.rewards, "kl": draws.kl}
    for name, side in (("policy_judged", draws.policy), ("reference_judged", draws.reference)):
        if side.judge_scores is not None:
            tensors[name] = side.judge_scores
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, directory / DRAWS)


def load_draws(directory: Path) -> Draws:
    """Load the draws that :func:`save_draws` has saved in ``directory``."""
    tensors = load_file(directory / DRAWS)
    policy, reference = (Side(tensors[name], tensors.get(f"{name}_judged")) for name in ("policy", "reference"))
    return Draws(policy, reference, tensors["kl"])


def score_side(
    scorer: CombinedScorer,
    judge: Judge | None,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[str],
    draws: int,
) -> Side:
    """Score the answers of one model.

    Args:
        scorer: The reward that selects responses.
        judge: A judge, if there is one.
        prompts: P conversations, each repeated for its M answers.
        answers: (P M) answers, as rewards read them.
        draws: M.
    """
    rewards = scorer.score(prompts, answers).astype(np.float64).reshape(-1, draws)
    return Side(rewards, judge(prompts, answers).reshape(-1, draws) if judge else None)


def collect(
    policy: Sampler,
    reference: Sampler,
    scorer: CombinedScorer,
    judge: Judge | None,
    prompts: Sequence[Sequence[Message]],
    draws: int,
    seed: int,
    drawers: tuple[Drawer, Drawer] | None = None,
    texts: ScoredTexts | None = None,
) -> Draws:
    """Draw responses from policy and reference and score them.

    Args:
        policy: The policy.
        reference: The reference.
        scorer: The reward that selects responses.
        judge: A judge, if there is one.
        prompts: P conversations.
        draws: M, responses per prompt and model.
        seed: Seed of the draws.
        drawers: What draws from policy and reference. By default the two samplers do.
        texts: Reads the answers that are scored. By default whole responses are.
    """
    repeats = [messages for messages in prompts for _ in range(draws)]
    policy_drawer, reference_drawer = drawers or (policy, reference)
    responses = policy_drawer.draw(repeats, derive_seed(seed, "policy"), "policy")
    measured = [row for row in range(len(repeats)) if row % draws < KL_DRAWS]
    kl = sequence_kl(policy, reference, [repeats[row] for row in measured], [responses[row] for row in measured])

    theirs = reference_drawer.draw(repeats, derive_seed(seed, "reference"), "reference")

    def score(tokens: list[list[int]]) -> Side:
        answers = texts.read_all(repeats, tokens) if texts else policy.text(tokens)
        return score_side(scorer, judge, repeats, answers, draws)

    return Draws(
        score(responses),
        score(theirs),
        kl.reshape(len(prompts), -1).mean(axis=1),
    )
