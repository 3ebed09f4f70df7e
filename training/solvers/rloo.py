"""Solver ``rloo``: on-policy, by TRL's RLOO, which subtracts β times the sequence's log-ratio from the reward.

That is the objective of InfAlign (arXiv 2412.19792, section 4) unmodified. C comes from the stored reference rewards
of each prompt; nothing is refreshed from the policy.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, LogitsProcessorList, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import RLOOConfig, RLOOTrainer

from infalign.frontier import beta_for_kl
from infalign.templates import Message, prompt_key, render_prompt, tokenise
from infalign.transforms import Gaussian, Identity
from training.memory import model_shape, on_policy
from training.models import lora, read_causal, save_trained
from training.optimisers import MuonAdam
from training.progress import attach
from training.runtime import train, trainer_arguments
from training.sampler import InverseCdfSampler
from training.solvers.task import Task

KL_MEMORY, GAIN = 0.9, 0.05


def solve(task: Task, directory: Path) -> float:
    """Start at theory's β for the target KL, then steer it by the KL of the training draws."""
    config = task.config
    tokenizer = AutoTokenizer.from_pretrained(task.reference, padding_side="left", trust_remote_code=False)
    model = read_causal(task.reference)
    # TRL hands generate no logits processors; torch.multinomial, its own way to draw, takes a third of a step on CPU.
    model.generate = partial(model.generate, logits_processor=LogitsProcessorList([InverseCdfSampler()]))
    texts = [render_prompt(tokenizer, messages) for messages in task.prompts]
    rows = [
        {"prompt": list(messages), "key": prompt_key(text)} for messages, text in zip(task.prompts, texts, strict=True)
    ]
    steer = SteerKL(config.target_kl)
    longest = max(len(tokenise(tokenizer, text)) for text in texts) + task.law.max_tokens
    rewards = sum(scorer.model.get_memory_footprint() for scorer in task.scorer.scorers.models.values())
    need = on_policy(model_shape(model), config, task.compute, longest, rewards)
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=ctrl_reward(task, steer),
        args=RLOOConfig(
            **trainer_arguments(task.directory, "ctrl", task.seed, config.prompts * config.generations, need),
            model_init_kwargs={"dtype": "auto"},
            num_generations=config.generations,
            max_completion_length=task.law.max_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            generation_kwargs={"do_sample": False},  # InverseCdfSampler draws
            beta=beta_for_kl(task.transformation, config.target_kl),
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=5,
            max_steps=config.steps,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[steer],
        peft_config=lora(config.lora) if config.lora else None,
    )
    if config.optimiser == "muon":
        trainer.optimizer = MuonAdam(trainer.model, config.learning_rate)
    attach(trainer, "ctrl", ("sequence_kl", "quantile"), task.directory, task.compute.report_to)
    steer.trainer = trainer
    train(trainer)
    save_trained(trainer, tokenizer, directory)
    return float(trainer.beta)


def ctrl_reward(task: Task, steer: "SteerKL") -> Callable[..., list[float]]:
    """Φ(C(reward)) as a TRL reward function; the dataset column ``key`` names each prompt's calibration.

    While the objective is annealed it is Φ mixed with the identity, each at its own β for the target KL: Φ of a sharp
    transformation tells most responses apart by nothing, and a policy that starts with it learns slowly.
    """
    mild = beta_for_kl(Identity(), task.config.target_kl)
    annealed = 0 if isinstance(task.transformation, Gaussian) else task.config.anneal * task.config.steps

    def transformed(
        prompts: list[list[Message]],
        completions: list[list[Message]],
        key: list[str],
        log_metric: Callable[[str, float], None],
        trainer_state: Any,
        **_: Any,
    ) -> list[float]:
        rewards = task.scorer.score(prompts, [completion[0]["content"] for completion in completions])
        quantiles = task.table.quantile(key, rewards)
        values = task.values(quantiles, rewards.astype(np.float64))
        if (done := trainer_state.global_step) < annealed:
            share = 1 - done / annealed
            values = (1 - share) * values + share * steer.trainer.beta / mild * quantiles
        log_metric("reward_raw", float(rewards.mean()))
        log_metric("quantile", float(quantiles.mean()))
        log_metric("transformed", float(values.mean()))
        return [float(value) for value in values]

    return transformed


class SteerKL(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Moves the trainer's β so that the measured KL settles at the target.

    TRL logs KL per token; the policy's is that times the mean length, in nats per response, logged here as
    ``sequence_kl`` (a running mean). A third of the run is left to theory's β first, or β would fall while the
    policy is still on its way.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.trainer: Any = None
        self.total = self.weight = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        beta = self.trainer.beta if self.trainer else None
        return {"args": {}, "attributes": {"total": self.total, "weight": self.weight, "beta": beta}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:  # going on from a checkpoint
            kept = state.stateful_callbacks[type(self).__name__]["attributes"]
            self.total, self.weight, self.trainer.beta = kept["total"], kept["weight"], kept["beta"]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "kl" not in logs:
            return
        kl = float(logs["kl"]) * float(logs["completions/mean_length"])
        self.total = KL_MEMORY * self.total + (1 - KL_MEMORY) * kl
        self.weight = KL_MEMORY * self.weight + (1 - KL_MEMORY)
        logs["sequence_kl"] = self.total / self.weight
        if state.global_step > state.max_steps / 3:
            error = max(-1.0, min(1.0, logs["sequence_kl"] / self.target - 1))
            self.trainer.beta *= math.exp(GAIN * error)
        logs["beta"] = self.trainer.beta
