"""Stage ``ctrl``: the policy, aligned for its decoding procedure.

Maximises E[Φ(C)] − β KL(π‖π_ref) with TRL's RLOO, which subtracts β times the sequence's log-ratio from the
reward: the objective of InfAlign (arXiv 2412.19792, section 4) unmodified. C comes from the stored reference
rewards of each prompt; nothing is refreshed from the policy. β starts where theory reaches the target KL and is
then steered by the KL measured on the training draws, since a finite network settles elsewhere than theory.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from infalign.calibration import CalibrationTable
from infalign.frontier import beta_for_kl
from infalign.templates import Message, prompt_key, render_prompt
from infalign.transforms import Transformation
from training.config import Ctrl
from training.progress import attach
from training.rollouts import Scorer
from training.runtime import trainer_arguments
from training.sft import save_model

KL_MEMORY, GAIN = 0.8, 0.1


def train_ctrl(
    directory: Path,
    prompts: Sequence[Sequence[Message]],
    reference: Path,
    scorer: Scorer,
    table: CalibrationTable,
    transformation: Transformation,
    config: Ctrl,
    max_tokens: int,
    seed: int,
) -> float:
    """Train and save the policy into ``directory``; returns the β it ended at. Every prompt must be in ``table``."""
    tokenizer = AutoTokenizer.from_pretrained(reference, padding_side="left")
    beta = beta_for_kl(transformation, config.target_kl)
    rows = [{"prompt": list(messages), "key": prompt_key(render_prompt(tokenizer, messages))} for messages in prompts]
    steer = SteerKL(config.target_kl)
    trainer = RLOOTrainer(
        model=str(reference),
        reward_funcs=ctrl_reward(scorer, table, transformation),
        args=RLOOConfig(
            **trainer_arguments(directory, seed),
            model_init_kwargs={"dtype": "float32"},
            per_device_train_batch_size=config.prompts * config.generations,
            num_generations=config.generations,
            max_completion_length=max_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=beta,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=5,
            max_steps=config.steps,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[steer],
    )
    attach(trainer, "ctrl", ("sequence_kl", "quantile"), directory)
    steer.trainer = trainer
    trainer.train()
    save_model(trainer.model, tokenizer, directory)
    return float(trainer.beta)


def ctrl_reward(scorer: Scorer, table: CalibrationTable, transformation: Transformation) -> Callable[..., list[float]]:
    """Φ(C(reward)) as a TRL reward function; the dataset column ``key`` names each prompt's calibration."""

    def transformed(
        prompts: list[list[Message]],
        completions: list[list[Message]],
        key: list[str],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        rewards = scorer.score(prompts, [completion[0]["content"] for completion in completions])
        quantiles = table.quantile(key, rewards)
        values = transformation(quantiles)
        log_metric("reward_raw", float(rewards.mean()))
        log_metric("quantile", float(quantiles.mean()))
        log_metric("transformed", float(values.mean()))
        return [float(value) for value in values]

    return transformed


class SteerKL(TrainerCallback):  # type: ignore[misc]
    """Moves the trainer's β so that the measured KL settles at the target.

    TRL logs KL per token; the policy's is that times the mean length, in nats per response, logged here as
    ``sequence_kl`` (a running mean). A third of the run is left to theory's β first, or β would fall while the
    policy is still on its way.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.trainer: Any = None
        self.total = self.weight = 0.0

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
