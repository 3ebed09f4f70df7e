"""The sections of the stages: how each of them works, and how all of them use the machine."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.config.model import Lora
from training.config.section import Section
from training.identity import IMMATERIAL

HELPDESK = "helpdesk"
"""Name of the judge that knows the ground truth of the generated help desk."""


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
    reasoning_parser: str | None = Field(
        None,
        description="vLLM's parser that separates reasoning from answers, such as qwen3; in every stage the rewards "
        "then read answers alone; if left out, they read whole responses",
    )
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

    solver: Literal["ctrl", "rloo", "regression"] = Field(
        "ctrl",
        description="algorithm; ctrl and rloo (TRL's REINFORCE leave-one-out) draw from the policy while it trains, "
        "regression learns from the stored rollouts alone",
    )
    objective: Literal["fixed", "live", "group"] | None = Field(
        None,
        description="what the solver ctrl maximises: fixed is E[Φ(C)]; live and group are the win rate under the "
        "procedure, by its gradient at the present policy or by subsets of the responses to a prompt; if left out, "
        "live for best-of-n with the transformation optimal that is not annealed, and fixed elsewhere",
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="library that the solver ctrl draws with; vllm gets the weights of each step, and is worth its "
        "start where responses are long or the GPU is fast",
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
    generations: int = Field(ge=1, description="responses per prompt and step")
    steps: int = Field(gt=0, description="optimiser steps")
    anneal: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps of ctrl and rloo in which the objective moves from the identity (plain "
        "quantiles) to Φ; 0.7 helps a steep Φ such as exp(-10)",
    )
    lora: Lora | None = Field(None, description="train the policy as an adapter on the reference")

    @model_validator(mode="after")
    def _check(self) -> Self:
        wins = self.objective in ("live", "group")
        if self.anneal and (self.solver == "regression" or wins):
            whose = self.solver if self.solver == "regression" else self.objective
            raise ValueError(f"anneal is for a fixed Φ that is learned on-policy, not for {whose}: set ctrl.anneal=0")
        if wins and self.solver != "ctrl":
            raise ValueError(f"objective={self.objective} is for the solver ctrl, not for {self.solver}")
        if self.engine != "transformers" and self.solver != "ctrl":
            raise ValueError(f"engine={self.engine} is for the solver ctrl, not for {self.solver}")
        least = {"rloo": 2, "regression": 2}.get(self.solver, 2 if self.objective == "group" else 1)
        if self.generations < least:
            objective = f" with objective={self.objective}" if self.objective else ""
            raise ValueError(
                f"generations must be at least {least} for {self.solver}{objective}; got {self.generations}"
            )
        if self.prompts * self.generations < 2:
            raise ValueError("a step needs two responses to compare: prompts and generations are both 1")
        return self

    def choose_objective(self, procedure: str, transformation: str) -> Literal["fixed", "live", "group"]:
        """Choose the objective where none is given. ``live`` won more for best-of-n, and less for worst-of-n.

        Args:
            procedure: Decoding procedure that the policy is aligned for.
            transformation: Name of the transformation Φ.
        """
        if self.objective:
            return self.objective
        is_best = procedure.startswith("best-of-") and "+" not in procedure
        is_live = is_best and (self.solver, transformation, self.anneal) == ("ctrl", "optimal", 0)
        return "live" if is_live else "fixed"


class Evaluation(Section):
    """How the policy is measured at the end of a run, on the test prompts and beside the reference."""

    draws: int | None = Field(
        None,
        ge=2,
        description="responses per prompt and model; if left out, 64, or more if the procedure takes more",
    )
    prompts: int | None = Field(None, gt=0, description="test prompts that are used at most; all if left out")


class ValidationJudge(Section):
    """A judge that is independent of the reward: how good answers are by it, and how large N may be until they suffer.

    Nothing is trained or selected by it.
    """

    path: str = Field(
        description="directory of a sequence classifier, whose higher scores are better; helpdesk is the ground truth "
        "of the generated help desk"
    )
    output: int | None = Field(
        None, ge=0, description="which output of the classifier is the score, from 0; may be left out if it has one"
    )
    draws: int = Field(
        128,
        ge=2,
        description="candidates of the policy to each validation prompt; nothing is learned about an N above this",
    )

    @property
    def source(self) -> str | Path:
        """The judge. A directory is a path, so that its contents are a part of what a stage is made from."""
        return self.path if self.path == HELPDESK else Path(self.path)


class PrefixScorer(Optimiser):
    """How the prefix scorer learns from the rollouts: a model that predicts the final quantile of a response.

    It starts from the reward model if that is a classifier on a causal LM with the reference's tokenizer, and otherwise
    from the reference.
    """

    bins: int = Field(8, ge=2, le=64, description="bins of the predicted laws; 8 tells quantiles of 1/8 apart")
    responses: int = Field(
        16, gt=0, description="rollouts of each prompt that are learned from; all if there are no more"
    )
    limit: float = Field(
        0.002,
        ge=0,
        le=1,
        description="largest loss in quantile of the selected candidate that early rejection may cause",
    )
    lora: Lora | None = Field(
        Lora(rank=16, alpha=32), description="train adapters, and merge them at the end; null trains all weights"
    )


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
