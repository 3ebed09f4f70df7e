"""Stage ``rollouts``: K scored responses of the reference to every prompt, under the bundle's sampling law."""

import json
from collections.abc import Sequence
from pathlib import Path

from infalign.bundle import SamplingLaw
from infalign.templates import Message
from training.sampler import Sampler
from training.scorer import Scorer


def write_rollouts(
    directory: Path,
    prompts: Sequence[Sequence[Message]],
    reference: Path,
    reward: Path,
    law: SamplingLaw,
    samples: int,
    seed: int,
) -> None:
    """Draw and score ``samples`` responses per prompt into ``rollouts.jsonl``: {prompt, responses, tokens, rewards}."""
    repeated = [messages for messages in prompts for _ in range(samples)]
    sampler = Sampler.load(reference, law)
    tokens = sampler.draw(repeated, seed)
    responses = sampler.text(tokens)
    rewards = Scorer.load(reward).score(repeated, responses).reshape(-1, samples).tolist()
    with (directory / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        for row, messages in enumerate(prompts):
            drawn = slice(row * samples, (row + 1) * samples)
            found = {"responses": responses[drawn], "tokens": tokens[drawn], "rewards": rewards[row]}
            file.write(json.dumps({"prompt": messages, **found}) + "\n")
