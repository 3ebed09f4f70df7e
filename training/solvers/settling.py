"""The last step of every solver: the policy's distance from the reference is scaled until its KL is the target.

Weights θ_ref + α (θ − θ_ref): α = 1 is the policy as trained, 0 the reference. Win rate against KL changes little
along that line (docs/LOG.md), so that policies settle at equal KL without steering noise into their training.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from infalign.estimators import Estimate, over_prompts
from infalign.templates import Message
from training.sampler import Sampler, sequence_kl

CLOSE, TRIALS, FURTHEST = 0.02, 6, 1.25
"""Relative distance from the target that is good enough; trials at most; largest α: beyond it win rate is lost."""


@dataclass(frozen=True)
class Settled:
    """Where a policy has come to rest."""

    scale: float
    """α."""
    kl: Estimate
    """Measured on validation prompts."""


def settle(
    policy: Sampler, reference: Sampler, prompts: Sequence[Sequence[Message]], target: float, draws: int, seed: int
) -> Settled:
    """Scale ``policy``, in place, so that its KL on ``prompts`` is ``target``, as near as α up to 1.25 gets."""
    move = _mover(policy.model, reference.model)
    repeated = [messages for messages in prompts for _ in range(draws)]

    def measured(scale: float) -> Estimate:
        move(scale)
        drawn = policy.draw(repeated, seed, "settle")
        return over_prompts(sequence_kl(policy, reference, repeated, drawn).reshape(-1, draws).mean(axis=1))

    found = [Settled(1.0, measured(1.0))]
    while abs(found[-1].kl.value / target - 1) > CLOSE and len(found) < TRIALS and found[-1].kl.value > 0:
        scale = min(FURTHEST, _next(found, target))
        if any(math.isclose(scale, tried.scale, rel_tol=1e-3) for tried in found):
            break
        found.append(Settled(scale, measured(scale)))
    best = min(found, key=lambda tried: abs(tried.kl.value - target))
    move(best.scale)
    return best


def _mover(policy: Any, reference: Any) -> Callable[[float], None]:
    """What sets the policy to a scale; of an adapter, whose update is a product BA, B alone is scaled."""
    if isinstance(policy, PeftModel):
        grown = {name: value.clone() for name, value in policy.named_parameters() if "lora_B" in name}

        def move(scale: float) -> None:
            policy.load_state_dict({name: scale * value for name, value in grown.items()}, strict=False)

        return move

    start = {name: value.clone() for name, value in reference.state_dict().items()}
    change = {name: value - start[name] for name, value in policy.state_dict().items()}
    return lambda scale: policy.load_state_dict({name: start[name] + scale * change[name] for name in start})


def _next(found: Sequence[Settled], target: float) -> float:
    """The scale at which a power law through the last two trials (KL ∝ α² through one) meets the target."""
    power = 2.0
    if len(found) > 1:
        (a, b) = found[-2:]
        if a.kl.value > 0 and a.scale != b.scale:
            power = math.log(b.kl.value / a.kl.value) / math.log(b.scale / a.scale)
    last = found[-1]
    return last.scale * math.exp(math.log(target / last.kl.value) / max(power, 0.5))
