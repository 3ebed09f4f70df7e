"""The ways of decoding that are compared, as requests to the decoding endpoints."""

from dataclasses import dataclass
from typing import Any, Literal

Group = Literal["fixed N", "adaptive N", "early rejection", "both", "controlled"]
"""A line of the picture."""
Family = Literal["best", "worst"]
"""Whether the best or the worst candidate is selected."""
FIXED = (1, 2, 4, 8, 16)
"""The N whose latency is measured."""
CAP = 32
"""N of the requests whose candidates give the curve of fixed N, and the cap of stopping rules."""
TARGETS = (0.8, 0.9, 0.95)
REJECTION = (4, 8, 16)
BLOCKS = ((2, 4), (4, 4), (4, 8), (8, 8))
"""K and the tokens of a block, for controlled decoding."""


@dataclass(frozen=True)
class Way:
    """One way of decoding."""

    group: Group
    label: str
    path: str
    """Path of the endpoint."""
    fields: dict[str, Any]
    """Fields of the request, beside the prompt and the seed."""


def list_ways(family: Family, has_scorer: bool, blocks: tuple[tuple[int, int], ...]) -> list[Way]:
    """List the ways to compare.

    Args:
        family: Whether the best or the worst candidate is selected.
        has_scorer: Whether the bundle has a prefix scorer. Without one there is neither rejection nor control.
        blocks: K and the tokens of a block, for controlled decoding. It selects good responses only.
    """
    path = f"/v1/{family}-of-n"
    ways = [Way("fixed N", f"{family}-of-{n}", path, {"n": n}) for n in FIXED]
    rules = [
        ({"n": CAP, "target_quantile": target if family == "best" else round(1 - target, 6)}, f"target {target:g}")
        for target in TARGETS
    ]
    ways += [Way("adaptive N", label, path, fields) for fields, label in rules]
    if not has_scorer:
        return ways
    rejection = {"early_rejection": True}
    ways += [Way("early rejection", f"{family}-of-{n}", path, {"n": n, **rejection}) for n in REJECTION]
    ways += [Way("both", label, path, {**fields, **rejection}) for fields, label in rules]
    if family == "best":
        ways += [Way("controlled", f"{k} x {block}", "/v1/controlled", {"k": k, "block": block}) for k, block in blocks]
    return ways
