"""Fields of requests that say when enough is drawn: of all candidates, and of a single one."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from server.protocol.fields import Body

RULE_FIELDS = ("target_quantile", "cost_per_draw", "cost_per_token")
"""Each of these is a rule. A request may have one."""


class StoppingFields(Body):
    """Fields that make N a cap, as draws stop as soon as a rule is met, and that end candidates early."""

    target_quantile: float | None = Field(
        None, gt=0, lt=1, description="stop at a candidate of this quantile or above; worst-of-n: or below"
    )
    target_bound: Literal["point", "credible"] | None = Field(
        None, description="what must reach the target: the estimate (point, the default), or its 95% bound (credible)"
    )
    cost_per_draw: float | None = Field(
        None, gt=0, lt=0.5, description="stop when one more draw is expected to gain less quantile than this"
    )
    cost_per_token: float | None = Field(
        None, gt=0, lt=0.5, description="the same per token; the first wave says how many tokens a draw has"
    )

    early_rejection: bool = Field(
        False,
        description="do not draw candidates to the end that will hardly be selected, by the bundle's prefix scorer",
    )

    @field_validator("cost_per_draw", "cost_per_token")
    @classmethod
    def _check_single_rule(cls, cost: float | None, info: ValidationInfo) -> float | None:
        if cost is not None and any(info.data.get(field) is not None for field in RULE_FIELDS):
            raise ValueError("one of target_quantile, cost_per_draw and cost_per_token, not several")
        return cost

    @property
    def rule_field(self) -> str | None:
        """The field that sets the rule, if there is one."""
        return next((field for field in RULE_FIELDS if getattr(self, field) is not None), None)
