"""Says whether a policy has reached its target KL."""

from typing import Any

from infalign.estimators import Estimate

TOLERANCE = 0.1
"""Relative distance from the target that needs no mention."""


def describe_miss(solution: dict[str, Any], target: float) -> str | None:
    """Describe by how much a policy has missed its target KL, and what helps.

    Args:
        solution: Contents of ``solved.json``, which the stage ``ctrl`` leaves.
        target: Target KL in nats per response.

    Returns:
        A sentence or two. None if the policy is near enough.

    Example:
        >>> solved = {"scale": 1.25, "kl": {"value": 0.2, "low": 0.19, "high": 0.21, "level": 0.95}}
        >>> describe_miss(solved, 0.205)
        >>> print(describe_miss(solved, 0.5))
        The policy has reached a KL of 0.200 [0.190, 0.210] on validation prompts, where ctrl.target_kl is 0.5. It \
moved too little, even with its distance from the reference scaled by 1.25: more ctrl.steps or a higher \
ctrl.learning_rate bring it further.
    """
    kl = Estimate(**solution["kl"])
    if abs(kl.value / target - 1) <= TOLERANCE:
        return None
    miss = f"The policy has reached a KL of {kl} on validation prompts, where ctrl.target_kl is {target:g}."
    if kl.value > target:
        return f"{miss} More validation prompts, or a smaller ctrl.learning_rate, bring it closer."
    return (
        f"{miss} It moved too little, even with its distance from the reference scaled by {solution['scale']:.3g}: "
        "more ctrl.steps or a higher ctrl.learning_rate bring it further."
    )
