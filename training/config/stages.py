"""The sections of the stages: how each of them works, and how all of them use the machine."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from infalign.manifest import NAME
from training.config.model import Lora
from training.config.section import Section
from training.identity import CONTENTS, IMMATERIAL


class Optimiser(Section):
    """How a model learns from written rows: the section ``sft``, and the base of ``reward.train``."""

    learning_rate: float = Field(gt=0, description="highest step size; a cosine schedule brings it down to zero")
    batch: int = Field(gt=0, description="rows per step, over all processes")
    epochs: int = Field(1, gt=0, description="passes over the data")
    optimiser: Literal["adam", "muon"] = Field(
        "adam", description="muon learns more from the same data where a model starts from scratch"
    )
    lora: Lora | None = Field(
        None, description="train adapters instead of all weights, and merge them into the weights at the end"
    )


class TrainedReward(Optimiser):
    """A reward model that the run trains on comparisons, starting from the reference.

    It is a Bradley-Terry model: the probability that the better response wins is the logistic function of the
    difference of the two rewards.
    """

    name: str = Field(
        "trained", pattern=NAME, description="name of the model in messages, in the model card and in the bundle"
    )
    weight: Annotated[float, IMMATERIAL] = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of this model in the reward, where there are several"
    )


class Classifier(Section):
    """A sequence classifier that already exists and serves as a reward model. One of its outputs is the reward."""

    path: Annotated[str, CONTENTS] = Field(description="directory of the classifier, or its id on the hub")
    higher_is: Literal["better", "worse"] = Field(
        description="what a high output means; for worse (toxicity, harm) the sign is turned"
    )
    chat_template: Annotated[str | None, CONTENTS] = Field(
        None, description="file with a Jinja chat template, for a tokenizer that has none"
    )
    pad_token: str | None = Field(
        None, description="a token that ends no conversation, for a classifier that pads with the one that does"
    )
    name: str = Field("", pattern=NAME, description="as of reward.train; the last part of the path if left out")
    weight: Annotated[float, IMMATERIAL] = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of this model in the reward, where there are several"
    )

    @model_validator(mode="before")
    @classmethod
    def _add_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(path := values.get("path"), str):
            return values
        return {"name": re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name).lstrip("._-") or "classifier"} | values


class Reward(Section):
    """The reward models, at least one. Several are combined by their quantiles, so that their scales do not matter."""

    train: TrainedReward | None = Field(None, description="a reward model that the run trains on the comparisons")
    classifiers: tuple[Classifier, ...] = Field((), description="classifiers that already exist")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [model.name for model in self.models]
        if not names:
            raise ValueError("give train, or classifiers, or both: at least one reward model")
        if len(set(names)) < len(names):
            raise ValueError(f"a name of its own for each reward model; they are named {', '.join(names)}")
        return self

    @property
    def models(self) -> tuple[TrainedReward | Classifier, ...]:
        """All reward models, the one that is trained first."""
        return (*([self.train] if self.train else []), *self.classifiers)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each model by its name."""
        return {model.name: model.weight for model in self.models}


class Ray(Section):
    """Drawing by actors of Ray Data. Each has its own engine and reward models, and they draw side by side."""

    address: str = Field(
        "local", description="address of a cluster; auto is the one that this machine is in, local starts a new one"
    )
    replicas: int = Field(gt=0, description="actors")
    gpus: int = Field(0, ge=0, le=1, description="GPUs per actor")


class Rollouts(Section):
    """The rollouts: scored responses of the reference to every prompt, from which its rewards are calibrated."""

    samples: int = Field(
        gt=0, description="K, responses per prompt; quantiles are known to about 1/K, and 64 is a good start"
    )
    max_tokens: int = Field(gt=0, description="longest response in tokens; longer ones are cut off")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="library that draws; vllm reads a prompt once for all its responses, but takes 20 to 50 s to "
        "start, which does not pay for a model of the demo's size on CPU",
    )
    shard: int = Field(
        256, gt=0, description="prompts that are drawn, scored and written together; a killed run repeats one shard"
    )
    ray: Annotated[Ray | None, IMMATERIAL] = Field(
        None, description="draw on a Ray cluster; if left out, draw on this machine without Ray"
    )


class Ctrl(Section):
    """How the policy is trained: maximise E[Φ(C)] − β KL (InfAlign, arXiv 2412.19792).

    C is the quantile of a response's reward among the rewards of the reference, Φ the transformation of the run, and
    KL the divergence of the policy from the reference.
    """

    solver: Literal["rloo", "regression"] = Field(
        "rloo",
        description="algorithm; rloo (REINFORCE leave-one-out) draws from the policy while it trains, regression "
        "learns from the stored rollouts alone",
    )
    seed: int | None = Field(None, ge=0, description="seed of this stage alone; the seed of the run if left out")
    target_kl: float = Field(
        gt=0, le=10, description="KL of the policy from the reference, in nats per response; 0.1 to 2 is usual"
    )
    learning_rate: float = Field(gt=0, description="highest step size; a linear schedule brings it down to zero")
    optimiser: Literal["muon", "adam"] = Field(
        "muon", description="muon orthogonalises the steps of weight matrices; adam for adapters and sharded weights"
    )
    prompts: int = Field(gt=0, description="prompts per step")
    generations: int = Field(ge=2, description="responses per prompt and step")
    steps: int = Field(gt=0, description="optimiser steps")
    anneal: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps of rloo in which the objective moves from the identity (plain quantiles) to Φ; "
        "0.7 helps a steep Φ such as exp(10)",
    )
    lora: Lora | None = Field(None, description="train the policy as an adapter on the reference")

    @model_validator(mode="after")
    def _check_anneal(self) -> Self:
        if self.anneal and self.solver != "rloo":
            raise ValueError(f"anneal is for rloo, not for {self.solver}: set ctrl.anneal=0")
        return self


class Compute(Section):
    """How the trainers use the machine. But for float rounding, results do not depend on it."""

    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of matrix products; bfloat16 is faster on GPUs and on CPUs that support it"
    )
    sequences: Annotated[int | None, IMMATERIAL] = Field(
        None,
        gt=0,
        description="rows per device and pass, a divisor of the batch; if left out, as many as fit into memory",
    )
    gradient_checkpointing: Annotated[bool, IMMATERIAL] = Field(
        False, description="recompute activations in the backward pass: less memory, a third more time"
    )
    save_every: Annotated[int, IMMATERIAL] = Field(
        50, gt=0, description="steps between two checkpoints; a stage that was killed goes on from the last one"
    )
    report_to: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], IMMATERIAL] = Field(
        (), description="services that metrics are sent to, beside metrics.jsonl and curves.svg"
    )
