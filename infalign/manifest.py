"""The records in ``bundle.json`` and ``calibration.json``: who made what, from what, and how good it is."""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from infalign.arrays import Floats
from infalign.calibration import Estimator, equivalent_anchors
from infalign.controlled import Controlled
from infalign.judge_record import JudgeRecord
from infalign.parsing import check_transformation, parse_mixture
from infalign.procedures import FixedN, Procedure, WorstOfN
from infalign.quantile_law import QuantileLaw
from infalign.rejection import Rejection, RejectionRule, TargetRejection
from infalign.stopping import StoppingRule

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of the names of policies and reward models."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingLaw(_Record):
    """How candidates are drawn from a model. A calibration is valid only for its own law."""

    temperature: float = Field(1.0, gt=0, description="softmax temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass; 1 keeps everything")
    top_k: int = Field(0, ge=0, description="most likely tokens kept; 0 keeps everything")
    max_tokens: int = Field(gt=0, description="length limit of a response, in tokens")


class RewardRecord(_Record):
    """The record of one of several reward models."""

    digest: str = Field(description="digest of its directory, below reward/")
    weight: float = Field(gt=0, allow_inf_nan=False, description="its share of the combined reward")


class CalibrationRecord(_Record):
    """How a calibration was made, in ``calibration/calibration.json``."""

    reference: str = Field(description="digest of the reference that was sampled")
    reward_model: str = Field(description="digest of the reward model that scored, or of all of them together")
    reward_models: dict[Annotated[str, Field(pattern=NAME)], RewardRecord] | None = Field(
        None, min_length=2, description="several, by name; left out where there is one"
    )
    chat_template: str = Field(description="SHA-256 of the chat template that prompts were rendered with")
    sampling: SamplingLaw
    samples: int = Field(gt=0, description="K, reference rewards per prompt")
    prompts: int = Field(gt=0, description="prompts in the table")
    estimator: Estimator
    resolution: float = Field(gt=0, description="grid that rewards are compared on")
    reasoning_parser: str | None = Field(
        None, description="vLLM's parser that separated reasoning from the answers that were scored; left out without"
    )

    @property
    def model_names(self) -> list[str]:
        """The names of the reward models, in the order of their calibrations; a single model is ``reward``."""
        return sorted(self.reward_models or ("reward",))


class RejectionRecord(_Record):
    """The threshold of early rejection for a procedure, and what it did to held-out responses of the reference."""

    threshold: float = Field(ge=0, le=1, description="least probability of becoming the best that a candidate needs")
    loss: float = Field(description="mean loss in quantile of the selected candidate")
    loss_low: float
    loss_high: float
    saved: float = Field(description="share of the tokens that were not drawn")
    saved_low: float
    saved_high: float


class ShareRecord(_Record):
    """The share of early rejection under a stopping rule, and what it did to held-out responses of the reference."""

    share: float = Field(
        ge=0, le=1, description="least probability of reaching the target, as a share of that of a fresh candidate"
    )
    tokens: float = Field(description="tokens until the target is reached, as a share of those without rejection")
    tokens_low: float
    tokens_high: float


class ScorerRecord(_Record):
    """How a prefix scorer was made, in ``scorer/scorer.json``."""

    reference: str = Field(description="digest of the reference whose responses it learned from")
    reward_model: str = Field(description="digest of the reward model, or of all of them together")
    calibration: str = Field(description="digest of the calibration that gave the quantiles")
    chat_template: str = Field(description="SHA-256 of the chat template that prompts were rendered with")
    trunk: str = Field(description="the model that it was trained from: reward or reference")
    edges: tuple[float, ...] = Field(
        min_length=3, description="rewards between which the bins of the law of the reward lie"
    )
    checkpoint: int = Field(gt=0, description="tokens between two checkpoints of early rejection")
    limit: float = Field(ge=0, description="largest loss in quantile that early rejection may cause")
    rejection: dict[Annotated[str, Field(pattern=r"^(best|worst)-of-[1-9][0-9]*$")], RejectionRecord] = Field(
        description="early rejection by the procedure, such as best-of-4"
    )
    shares: dict[Annotated[str, Field(pattern=r"^(best|worst)-of-n$")], ShareRecord] = Field(
        description="early rejection under a stopping rule, by the family of its procedure"
    )
    measured: dict[str, float] = Field(description="figures measured on validation prompts")

    @model_validator(mode="after")
    def _check_edges(self) -> Self:
        if any(low > high for low, high in pairwise(self.edges)):
            raise ValueError("edges must be in increasing order")
        return self

    @property
    def anchors(self) -> int:
        """The number of anchors of a prompt itself that are as exact as the calibration that the scorer predicts.

        It follows from the upper end of the interval of the measured error: intervals that are a little too wide do
        less harm than those that are too narrow.
        """
        error = self.measured.get("calibration_predicted_high", self.measured["calibration_predicted"])
        return equivalent_anchors(error)

    def rejection_for(self, procedure: Procedure | Controlled, law: Floats | None = None) -> Rejection:
        """Return the rule of early rejection for a procedure that draws all its candidates.

        Between and beyond the procedures that were fitted, a threshold is a share of the probability 1/n that every
        candidate has at first. It is the smaller share of those of the nearest n below and above.

        Args:
            procedure: The procedure. One that is neither best-of-n nor worst-of-n rejects nothing.
            law: (K + 1,) probability of each rank of one draw among K anchors, such as
                :func:`infalign.drift.rank_law`. By default that of the reference.

        Returns:
            The rule, for laws that are counted so that 1 is best for the procedure.
        """
        family = procedure.family.removesuffix("n")
        fitted = {int(key.removeprefix(family)): each for key, each in self.rejection.items() if key.startswith(family)}
        if not fitted or not isinstance(procedure, FixedN):
            return Rejection(0.0)
        below, above = (n for n in fitted if n <= procedure.n), (n for n in fitted if n >= procedure.n)
        nearest = {max(below, default=min(fitted)), min(above, default=max(fitted))}
        share = min(fitted[n].threshold * n for n in nearest)
        return Rejection(min(1.0, share / procedure.n), self._policy(procedure, law))

    def rejection_under(
        self, rule: StoppingRule, samples: int | None = None, law: Floats | None = None
    ) -> RejectionRule:
        """Return the rule of early rejection under a stopping rule.

        Args:
            rule: The stopping rule.
            samples: K, the number of anchors; None for exact calibration.
            law: (K' + 1,) probability of each rank of one draw among K' anchors, as in
                :meth:`infalign.StoppingRule.waves`. By default that of the reference.

        Returns:
            The rule, for laws that are counted so that 1 is best for the procedure. It is that of
            :meth:`rejection_for` if no candidate can be good enough to stop at.
        """
        target, share = rule.mean_threshold(samples), self.shares.get(rule.procedure.family)
        if target >= 1:
            return self.rejection_for(rule.procedure, law)
        policy = self._policy(rule.procedure, law)
        # By the bins, as for candidates. The ranks are more exact, and near the top they would call a fresh candidate
        # likelier to succeed than any that is read.
        fresh = (policy or QuantileLaw.uniform(len(self.edges) - 1)).exceeds(target)
        return TargetRejection(target, share.share * float(fresh) if share else 0.0, policy)

    def _policy(self, procedure: Procedure, law: Floats | None) -> QuantileLaw | None:
        """The law of a draw, counted so that 1 is best for the procedure."""
        if law is None:
            return None
        drawn = QuantileLaw.of_ranks(law, len(self.edges) - 1)
        return drawn.mirror if isinstance(procedure, WorstOfN) else drawn


def _validate_by(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


class Alignment(_Record):
    """What a policy was aligned for, how, and the figures it reached.

    A policy that was not aligned, because it is the reference itself, has neither a transformation nor a β.

    Examples:
        >>> from infalign import Alignment
        >>> alignment = Alignment(procedure="best-of-4", transformation="exp(10)", beta=0.3, measured={"kl": 0.5})
        >>> alignment.measured["kl"]
        0.5
    """

    procedure: Annotated[str, _validate_by(parse_mixture)] = "standard"
    transformation: Annotated[str, _validate_by(check_transformation)] | None = None
    beta: float | None = Field(None, gt=0)
    measured: dict[str, float] = Field(description="figures measured on held-out prompts")
    judged: JudgeRecord | None = Field(
        None,
        exclude_if=lambda judged: judged is None,
        description="how far a judge supports the selection by the reward; left out where none was asked",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.transformation is None) != (self.beta is None):
            raise ValueError("give transformation and beta, or neither")
        return self


class PolicyRecord(Alignment):
    """The record of one policy of a bundle."""

    path: str = Field(
        pattern=r"^(policy|reference|adapters/[^/]+)$",
        description="its directory; an adapter sits on reference/, and an unaligned policy is the reference itself",
    )
    digest: str = Field(description="digest of that directory")


class Origin(_Record):
    """The model on the hub that a part of a bundle was made of."""

    model: str = Field(description="its id on the hub")
    revision: str = Field(description="hash of the commit that was loaded")


class ScorerEntry(_Record):
    """The prefix scorer of a bundle."""

    digest: str = Field(description="digest of scorer/")
    measured: dict[str, float] = Field(description="figures measured on validation prompts")


class Manifest(_Record):
    """The content of ``bundle.json``."""

    format: int
    name: str = Field(pattern=NAME, description="the policy that answers where a request names none")
    created: str = Field(description="UTC, ISO 8601")
    policies: dict[Annotated[str, Field(pattern=NAME)], PolicyRecord] = Field(
        description="model name that the server answers to -> policy"
    )
    reference: str = Field(description="digest of reference/")
    reward_model: str = Field(description="digest of reward/")
    calibration: str = Field(description="digest of calibration/")
    scorer: ScorerEntry | None = Field(
        None, exclude_if=lambda scorer: scorer is None, description="the prefix scorer; left out where there is none"
    )
    origins: dict[str, Origin] = Field(
        {}, description="what came from the hub, by where it is in the bundle: reference, reward or reward/NAME"
    )
    sampling: SamplingLaw
    libraries: dict[str, str]
    files: dict[str, str] = Field(description="relative path -> SHA-256")

    @model_validator(mode="after")
    def _check_policies(self) -> Self:
        if self.name not in self.policies:
            raise ValueError(f"name is {self.name}, which is none of the policies {', '.join(self.policies)}")
        if len(self.policies) > 1 and any(not policy.path.startswith("adapters/") for policy in self.policies.values()):
            raise ValueError("several policies are adapters, each below adapters/")
        return self
