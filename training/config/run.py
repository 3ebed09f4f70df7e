"""The config of a whole run."""

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast

from pydantic import AfterValidator, Field, model_validator

from infalign.manifest import NAME, SamplingLaw
from infalign.mixture import Mixture
from infalign.parsing import check_transformation, parse_mixture
from infalign.procedures import FixedN
from training.config.data import Data
from training.config.model import Model
from training.config.rewards import Reward, TrainedReward
from training.config.section import Section
from training.config.stages import (
    HELPDESK,
    Compute,
    Ctrl,
    Evaluation,
    Optimiser,
    PrefixScorer,
    Rollouts,
    ValidationJudge,
)

SectionT = TypeVar("SectionT", bound=Section)


def _normalise(parse: Any) -> AfterValidator:
    """A validator that replaces a text by how ``parse`` writes it."""
    return AfterValidator(lambda text: str(parse(text)))


def _check_group(mixture: Mixture, generations: int) -> None:
    """Check that the objective ``group`` can estimate win rates from so many responses to a prompt."""
    for procedure in mixture.procedures:
        if not isinstance(procedure, FixedN):
            raise ValueError(f"ctrl.objective=group is for standard, best-of-n and worst-of-n, not for {procedure}")
        if procedure.n > generations:
            raise ValueError(
                f"ctrl.objective=group takes ctrl.generations of at least the {procedure.n} of {procedure}; "
                f"got {generations}"
            )


def _pick(kind: type[SectionT], **values: Any) -> SectionT:
    """A section with ``values`` and defaults alone; reading any other field fails."""
    return cast(SectionT, kind.model_construct(**values))


class DataConfig(Section):
    """The part of a config that the stage ``data`` depends on."""

    data: Data = Field(description="where prompts, answers and comparisons come from")
    model: Model = Field(description="what the reference starts from")
    sft: Optimiser | None = Field(
        None, description="how the reference learns from the answers; if left out, it is the base model as it is"
    )
    reward: Reward = Field(description="the reward models")
    rollouts: Rollouts = Field(description="how the reference's responses are drawn")


class Config(DataConfig):
    """A whole training run."""

    seed: int = Field(ge=0, description="seed of the run; every stage derives its own from it")
    name: str = Field(
        pattern=NAME, description="name of the run; runs of one name share the stages that they have in common"
    )
    policy: str | None = Field(
        None, pattern=NAME, description="model name under which the policy is served; the run's name if left out"
    )
    procedure: Annotated[str, _normalise(parse_mixture)] = Field(
        "standard",
        description="decoding procedure that the policy is aligned for: standard, best-of-4, worst-of-4, ...; or a "
        "mixture of several, such as 2*best-of-4+worst-of-4; required where ctrl is given",
    )
    transformation: Annotated[str, _normalise(check_transformation)] = Field(
        "identity",
        description="Φ, the transformation of quantiles that is maximised: identity, log, exp(10), optimal, ...; "
        "required where ctrl is given",
    )
    ctrl: Ctrl | None = Field(
        None, description="how the policy is trained; if left out, the reference itself becomes the policy"
    )
    evaluation: Evaluation | None = Field(
        Evaluation(),
        description="how the policy is measured; null measures nothing, which `infalign evaluate` can do later",
    )
    judge: ValidationJudge | None = Field(
        None,
        description="what measures the policy beside the reward; if left out, the ground truth where the help desk is "
        "generated, and otherwise nothing",
    )
    scorer: PrefixScorer | None = Field(
        None, description="how a prefix scorer is trained, which predicts quantiles early; if left out, there is none"
    )
    compute: Compute = Field(Compute(), description="how the trainers use the machine")

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        aligned = self.model_fields_set & {"procedure", "transformation"}
        if self.ctrl and len(aligned) < 2:
            raise ValueError("ctrl needs procedure and transformation: what the policy is aligned for, and by what")
        aligned |= self.model_fields_set & {"evaluation"} if self.evaluation else set()
        if aligned and not self.ctrl:
            raise ValueError(f"{' and '.join(sorted(aligned))} without ctrl: give ctrl, or leave it out")
        if self.ctrl and self.data.prompts and self.data.prompts.held_out in (0, 1):
            raise ValueError("ctrl needs data.prompts.held_out of at least 2, to settle and to measure the policy")
        if self.ctrl and self.ctrl.objective in ("live", "group") and self.transformation != "optimal":
            raise ValueError(
                f"ctrl.objective={self.ctrl.objective} maximises the win rate itself, and not transformation="
                f"{self.transformation}: set transformation=optimal, which says the same, or ctrl.objective=fixed"
            )
        if self.ctrl and self.ctrl.anneal and self.transformation == "gaussian":
            raise ValueError(
                f"transformation=gaussian is not annealed, its values are no quantiles; got ctrl.anneal="
                f"{self.ctrl.anneal:g}: set ctrl.anneal=0"
            )
        if self.ctrl and self.ctrl.objective == "group":
            _check_group(parse_mixture(self.procedure), self.ctrl.generations)
        if self.model.scratch and not self.sft:
            raise ValueError("a model from scratch needs sft")
        coarse = self.model.base and self.model.base.precision == "bfloat16"
        for key, section in (
            ("sft", self.sft),
            ("reward.train", self.reward.train),
            ("scorer", self.scorer),
            ("ctrl", self.ctrl),
        ):
            if coarse and section and not section.lora:
                raise ValueError(
                    f"{key} cannot train weights of bfloat16, small steps are lost: give {key}.lora, or "
                    "model.base.precision float32 with compute.precision bfloat16"
                )
        if self.scorer and self.data.prompts and self.data.prompts.held_out in (0, 1):
            raise ValueError("scorer needs data.prompts.held_out of at least 2, to measure the scorer")
        if self.data.prompts and self.sft:
            raise ValueError("data.prompts has no answers for sft; leave sft out, and give model.base")
        if self.data.prompts and self.reward.train:
            raise ValueError("data.prompts has no comparisons for reward.train; give a reward that exists")
        return self

    @property
    def policy_name(self) -> str:
        """Model name of the policy and of its bundle."""
        return self.policy or self.name

    @property
    def alignment(self) -> Ctrl:
        """The section ``ctrl`` of a run that has one."""
        if self.ctrl is None:
            raise LookupError("a run without ctrl trains no policy")
        return self.ctrl

    @property
    def validation_judge(self) -> ValidationJudge | None:
        """The judge of the run, if it has one."""
        return self.judge or (ValidationJudge(path=HELPDESK) if self.data.helpdesk else None)

    @property
    def law(self) -> SamplingLaw:
        """The sampling law: how responses are drawn from the reference and, by default, from the policy."""
        return SamplingLaw(max_tokens=self.rollouts.max_tokens)

    @property
    def for_data(self) -> DataConfig:
        """What the stage ``data`` depends on, and nothing else.

        Of the stages that use the data it only says whether they are part of the run. So a change of their settings
        does not make new data.
        """
        return DataConfig.model_construct(
            data=self.data,
            model=self.model,
            sft=_pick(Optimiser) if self.sft else None,
            reward=_pick(Reward, train=_pick(TrainedReward) if self.reward.train else None),
            rollouts=_pick(Rollouts, max_tokens=self.rollouts.max_tokens),
        )

    @property
    def from_hub(self) -> bool:
        """Whether the data or a model has to be fetched from the hub."""
        models = [
            self.model.base and self.model.base.path,
            *(model.path for model in self.reward.given_models),
        ]
        return bool(
            (not self.data.helpdesk and self.data.files.hub) or any(path and not Path(path).exists() for path in models)
        )
