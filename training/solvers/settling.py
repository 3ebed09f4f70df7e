"""Settling, the last step of every solver: scales the policy's distance from the reference until its KL is the target.

The weights become θ_ref + α (θ − θ_ref), so α = 1 is the policy as it was trained and α = 0 the reference. Along that
line, the win rate at a given KL changes little (docs/project/log.md). Policies can so be compared at equal KL, without
forcing the KL during training, which would add noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from infalign.estimators import Estimate, over_prompts
from infalign.templates import Message
from training.likelihoods import sequence_kl
from training.sampler import Sampler

TOLERANCE, MOST_TRIALS, LARGEST_SCALE = 0.02, 6, 1.25
"""Relative distance from the target that is good enough, most trials, and largest α. A larger α loses win rate."""


@dataclass(frozen=True)
class Settlement:
    """Where a policy has settled."""

    scale: float
    """α."""
    kl: Estimate
    """KL in nats per response, measured on validation prompts."""


def settle(
    policy: Sampler, reference: Sampler, prompts: Sequence[Sequence[Message]], target: float, draws: int, seed: int
) -> Settlement:
    """Scale a policy, in place, so that its KL is the target, or as near to it as α up to 1.25 allows.

    Args:
        policy: The policy, whose weights are changed.
        reference: The reference.
        prompts: Prompts that the KL is measured on.
        target: Target KL in nats per response.
        draws: Responses per prompt.
        seed: Seed of the responses.

    Returns:
        Scale and KL of the settled policy.
    """
    move = _make_mover(policy.model, reference.model)
    repeats = [messages for messages in prompts for _ in range(draws)]

    def measure_kl(scale: float) -> Estimate:
        move(scale)
        responses = policy.draw(repeats, seed, "settle")
        return over_prompts(sequence_kl(policy, reference, repeats, responses).reshape(-1, draws).mean(axis=1))

    trials = [Settlement(1.0, measure_kl(1.0))]
    while abs(trials[-1].kl.value / target - 1) > TOLERANCE and len(trials) < MOST_TRIALS and trials[-1].kl.value > 0:
        scale = min(LARGEST_SCALE, _next_scale(trials, target))
        if any(math.isclose(scale, trial.scale, rel_tol=1e-3) for trial in trials):
            break
        trials.append(Settlement(scale, measure_kl(scale)))
    best = min(trials, key=lambda trial: abs(trial.kl.value - target))
    move(best.scale)
    return best


def _make_mover(policy: Any, reference: Any) -> Callable[[float], None]:
    """Make a function that sets the policy to a scale. The update of an adapter is a product BA; B alone is scaled."""
    if isinstance(policy, PeftModel):
        adapter_weights = {name: value.clone() for name, value in policy.named_parameters() if "lora_B" in name}

        def move(scale: float) -> None:
            policy.load_state_dict({name: scale * value for name, value in adapter_weights.items()}, strict=False)

        return move

    start = {name: value.clone() for name, value in reference.state_dict().items()}
    change = {name: value - start[name] for name, value in policy.state_dict().items()}
    return lambda scale: policy.load_state_dict({name: start[name] + scale * change[name] for name in start})


def _next_scale(trials: Sequence[Settlement], target: float) -> float:
    """Find where a power law through the last two trials meets the target. Through one trial, it is KL ∝ α²."""
    power = 2.0
    if len(trials) > 1:
        (a, b) = trials[-2:]
        if a.kl.value > 0 and a.scale != b.scale:
            power = math.log(b.kl.value / a.kl.value) / math.log(b.scale / a.scale)
    last = trials[-1]
    return last.scale * math.exp(math.log(target / last.kl.value) / max(power, 0.5))
