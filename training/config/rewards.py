"""The section ``reward``: which rewards there are."""

import hashlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from infalign.manifest import NAME
from infalign.names import slug
from infalign.rewards import FunctionReward, JudgeReward, ReferenceJudgeReward, ServiceReward
from infalign.rewards.rubric import RUBRIC, SCORES, check_rubric, check_scores
from training.config.section import Section
from training.config.stages import Optimiser
from training.identity import CONTENTS, IMMATERIAL

Weight = Annotated[float, IMMATERIAL]
WEIGHT = Field(1.0, gt=0, allow_inf_nan=False, description="share of this reward, where there are several")
NAME_FIELD = Field("", pattern=NAME, description="as of reward.train; made from what the reward is if left out")
HIGHER_IS = Field(description="what a high output means; for worse (toxicity, harm) the sign is turned")


class TrainedReward(Optimiser):
    """A reward model that the run trains on comparisons, starting from the reference.

    It is a Bradley-Terry model: the probability that the better response wins is the logistic function of the
    difference of the two rewards.
    """

    name: str = Field(
        "trained", pattern=NAME, description="name of the reward in messages, in the model card and in the bundle"
    )
    weight: Weight = WEIGHT


class _Named(Section):
    """A reward whose name is made from another of its fields, if it is left out."""

    @model_validator(mode="before")
    @classmethod
    def _add_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        source = next((text for key in SOURCES if isinstance(text := values.get(key), str)), None)
        return values if source is None else {"name": make_name(source)} | values


SOURCES = ("path", "function", "model", "url")
"""Fields that name a reward, the first that is given."""


def make_name(source: str) -> str:
    """Make the name of a reward from the path, function or address that it comes from.

    Example:
        >>> make_name("my_rewards:brevity"), make_name("org/harm classifier"), make_name("http://host:9000/score")
        ('brevity', 'harm-classifier', 'host-9000-score')
    """
    text = source.partition("://")[2] or Path(source).name.rpartition(":")[2].partition("@")[0]
    return slug(text, "reward").rstrip("._-")


class Classifier(_Named):
    """A sequence classifier that already exists and serves as a reward model. One of its outputs is the reward."""

    path: Annotated[str, CONTENTS] = Field(
        description="directory of the classifier, or its id on the hub, also ID@REVISION"
    )
    higher_is: Literal["better", "worse"] = HIGHER_IS
    label: str | int | None = Field(
        None,
        description="the output that counts, by name or number, of a classifier with several; of two, the reward is "
        "its logit less the other's",
    )
    text: str | None = Field(
        None,
        description="what the classifier reads, with {conversation} or {prompt} and {response} in it, in place of a "
        "chat template",
    )
    chat_template: Annotated[str | None, CONTENTS] = Field(
        None, description="file with a Jinja chat template, for a tokenizer that has none"
    )
    pad_token: str | None = Field(
        None, description="a token that ends no conversation, for a classifier that pads with the one that does"
    )
    name: str = NAME_FIELD
    weight: Weight = WEIGHT

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.text is not None and self.chat_template is not None:
            raise ValueError("give text or chat_template, not both")
        if self.text is not None:
            check_rubric(self.text)
        return self


class Judge(_Named):
    """A language model of this machine that reads a rubric and a response. The reward is its expected score."""

    path: Annotated[str, CONTENTS] = Field(
        description="directory of a causal LM, or its id on the hub, also ID@REVISION"
    )
    higher_is: Literal["better", "worse"] = Field("better", description="what a high score means")
    rubric: Annotated[str, AfterValidator(check_rubric)] = Field(
        RUBRIC, description="what the judge reads, with {conversation} and {response} in it"
    )
    scores: Annotated[dict[str, float], AfterValidator(check_scores)] = Field(
        SCORES, description="what the judge may write, a token each, and what it is worth"
    )
    name: str = NAME_FIELD
    weight: Weight = WEIGHT


class Function(FunctionReward, _Named):
    """A Python function as a reward."""

    name: str = NAME_FIELD
    weight: Weight = WEIGHT

    @model_validator(mode="before")
    @classmethod
    def _add_source(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(function := values.get("function"), str):
            return values | {"source": _hash_module(function.partition(":")[0])}
        return values


class Service(ServiceReward, _Named):
    """An HTTP service as a reward."""

    name: str = NAME_FIELD
    weight: Weight = WEIGHT


class RemoteJudge(JudgeReward, _Named):
    """A judge behind an OpenAI-compatible server as a reward."""

    name: str = NAME_FIELD
    weight: Weight = WEIGHT


class ReferenceJudge(ReferenceJudgeReward, Section):
    """The reference as its own judge: a language model that judges, without a second set of weights."""

    name: str = Field("reference-judge", pattern=NAME, description="as of reward.train")
    weight: Weight = WEIGHT


External = Function | Service | RemoteJudge
"""A reward that no model of this machine computes."""
AnyReward = TrainedReward | Classifier | Judge | ReferenceJudge | External


class Reward(Section):
    """The rewards, at least one. Several are combined by their quantiles, so that their scales do not matter."""

    train: TrainedReward | None = Field(None, description="a reward model that the run trains on the comparisons")
    classifiers: tuple[Classifier, ...] = Field((), description="classifiers that already exist")
    judges: tuple[Judge, ...] = Field((), description="language models that judge by a rubric")
    reference_judges: tuple[ReferenceJudge, ...] = Field((), description="the reference, as a judge by a rubric")
    remote_judges: tuple[RemoteJudge, ...] = Field((), description="the same, behind OpenAI-compatible servers")
    functions: tuple[Function, ...] = Field((), description="Python functions")
    services: tuple[Service, ...] = Field((), description="HTTP services that score")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [model.name for model in self.models]
        if not names:
            raise ValueError(
                "give at least one of train, classifiers, judges, reference_judges, remote_judges, functions and "
                "services: a reward"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"a name of its own for each reward; they are named {', '.join(names)}")
        return self

    @property
    def given_models(self) -> tuple[Classifier | Judge, ...]:
        """The rewards that are models which already exist."""
        return (*self.classifiers, *self.judges)

    @property
    def external(self) -> tuple[External, ...]:
        """The rewards that no model of this machine computes."""
        return (*self.remote_judges, *self.functions, *self.services)

    @property
    def models(self) -> Sequence[AnyReward]:
        """All rewards, the one that is trained first."""
        return (*([self.train] if self.train else []), *self.given_models, *self.reference_judges, *self.external)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward by its name."""
        return {model.name: model.weight for model in self.models}


def _hash_module(name: str) -> str:
    """Compute the SHA-256 of a module's file, so that a changed function is another reward. Empty if there is none."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec = find_spec(name)
        file = spec and spec.origin and Path(spec.origin)
        return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
    except (ImportError, ValueError, OSError):
        return ""
