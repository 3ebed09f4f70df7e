"""Solver ``rloo``: learns from responses that the policy draws while it trains (on-policy), with TRL's RLOO.

RLOO (REINFORCE leave-one-out) compares each response with the mean of the other responses to the same prompt. TRL
subtracts β times the log-ratio of the sequence from its reward, so this is exactly the objective of InfAlign (arXiv
2412.19792, section 4). C comes from the stored rewards of the reference. Nothing is recalibrated on the policy.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig, TrainerCallback
from transformers.trainer_callback import ExportableState

from infalign.policies import beta_for_kl
from infalign.templates import Message, prompt_key, render_prompt, tokenise
from infalign.transforms import Gaussian, Identity
from training.memory import model_shape, on_policy_pass
from training.models import lora_config, read_causal, save_trainer_model, without_dropout
from training.optimisers import MuonAdam
from training.progress import attach_progress
from training.runtime import run_trainer, trainer_arguments
from training.sampler import draw_responses
from training.solvers.task import Task
from training.solvers.trl_rloo import RLOOConfig, RLOOTrainer

GROUP = 64
"""Responses that the trainer reads together."""
KL_MEMORY, GAIN = 0.9, 0.05
"""Weight of the past in the running mean of KL, and largest relative change of β per step."""


def solve(task: Task, directory: Path) -> float:
    """Train the policy, starting at the β that theory gives for the target KL.

    During training, β is steered so that the KL of the draws reaches the target; see :class:`SteerKL`.

    Args:
        task: What the policy is trained for.
        directory: Directory that the policy is saved in.

    Returns:
        The last β.
    """
    config = task.config
    tokenizer = AutoTokenizer.from_pretrained(task.reference, padding_side="left", trust_remote_code=False)
    model = without_dropout(read_causal(task.reference))
    model.generate = partial(generate, model, task.law.max_tokens)
    texts = [render_prompt(tokenizer, messages) for messages in task.prompts]
    rows = [
        {"prompt": list(messages), "key": prompt_key(text)} for messages, text in zip(task.prompts, texts, strict=True)
    ]
    rows *= -(-config.prompts // len(rows))  # TRL leaves out what does not fill a step
    steer = SteerKL(config.target_kl)
    longest = max(len(tokenise(tokenizer, text)) for text in texts) + task.law.max_tokens
    need = on_policy_pass(model_shape(model), config, task.compute, longest, task.scorer.scorers.memory)
    trainer = LengthSortedTrainer(
        model=model,
        reward_funcs=make_reward_function(task, steer),
        args=RLOOConfig(
            **trainer_arguments(task.directory, "ctrl", task.seed, config.prompts * config.generations, need),
            model_init_kwargs={"dtype": "auto"},
            num_generations=config.generations,
            max_completion_length=task.law.max_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
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
        peft_config=lora_config(config.lora) if config.lora else None,
    )
    if config.optimiser == "muon":
        trainer.optimizer = MuonAdam(trainer.model, config.learning_rate)
    attach_progress(trainer, "ctrl", ("sequence_kl", "quantile"), task.directory, task.compute.report_to)
    steer.trainer = trainer
    run_trainer(trainer)
    save_trainer_model(trainer, tokenizer, directory)
    return float(trainer.beta)


def generate(
    model: Any,
    max_tokens: int,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    generation_config: GenerationConfig,
    **_: Any,
) -> torch.Tensor:
    """Draw responses for TRL, in place of the model's own ``generate``, which is slower.

    Args:
        model: The policy.
        max_tokens: Most tokens of a response.
        input_ids: Prompts, padded on the left, of shape (B, width).
        attention_mask: Zero where they are padded, of the same shape.
        generation_config: TRL's, which names the tokens that end a response and that pad it.

    Returns:
        Token ids of prompts and responses, padded on the right, of shape (B, width + longest response).
    """
    ends = generation_config.eos_token_id
    responses = draw_responses(
        model,
        {"input_ids": input_ids, "attention_mask": attention_mask},
        max_tokens,
        ends if isinstance(ends, list) else [ends],
    )
    padded = pad_sequence(
        [torch.tensor(tokens, device=input_ids.device) for tokens in responses],
        batch_first=True,
        padding_value=generation_config.pad_token_id,
    )
    return torch.cat([input_ids, padded], dim=1)


def make_reward_function(task: Task, steer: "SteerKL") -> Callable[..., list[float]]:
    """Make Φ(C(reward)) a reward function for TRL.

    The column ``key`` of the data set names the calibration table of each prompt.

    At the start of training, Φ may be mixed with the identity (``ctrl.anneal``), each at its own β for the target KL. A
    steep Φ gives most responses nearly the same value, so a policy that starts with it alone learns slowly.

    Args:
        task: What the policy is trained for.
        steer: Callback that holds the trainer, whose β is used.

    Returns:
        A reward function as TRL calls it.
    """
    mild = beta_for_kl(Identity(), task.config.target_kl)
    anneal_steps = 0 if isinstance(task.transformation, Gaussian) else task.config.anneal * task.config.steps

    def transform_rewards(
        prompts: list[list[Message]],
        completions: list[list[Message]],
        completion_ids: list[list[int]],
        key: list[str],
        log_metric: Callable[[str, float], None],
        trainer_state: Any,
        **_: Any,
    ) -> list[float]:
        whole = [completion[0]["content"] for completion in completions]
        rewards = task.scorer.score(prompts, task.texts.read_all(prompts, completion_ids) if task.texts else whole)
        quantiles = task.table.quantile(key, rewards)
        values = task.values(quantiles, rewards.astype(np.float64))
        if (step := trainer_state.global_step) < anneal_steps:
            share = 1 - step / anneal_steps
            values = (1 - share) * values + share * steer.trainer.beta / mild * quantiles
        log_metric("reward_raw", float(rewards.mean()))
        log_metric("quantile", float(quantiles.mean()))
        log_metric("transformed", float(values.mean()))
        return [float(value) for value in values]

    return transform_rewards


class LengthSortedTrainer(RLOOTrainer):  # type: ignore[misc]
    """TRL's trainer, except that it reads little padding.

    TRL pads every response to the longest of a step. Here, responses of similar length are read together, and each
    group is as wide as its longest response. On the demo, whose longest response is three times the mean, a step takes
    two thirds of the time.
    """

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        lengths = attention_mask[:, -logits_to_keep:].sum(dim=1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(GROUP):
            longest = max(1, int(lengths[rows].max()))
            unread = logits_to_keep - longest
            padding = int(attention_mask[rows].argmax(dim=1).min())  # before the prompts
            columns = slice(padding, input_ids.shape[1] - unread)
            read = super()._get_per_token_logps_and_entropies(
                model, input_ids[rows, columns], attention_mask[rows, columns], longest, batch_size, **options
            )
            logs, entropies = (None if part is None else pad(part, (0, unread)) for part in read[:2])
            parts.append((logs, entropies, read[2]))
        back = order.argsort()
        each_logs, each_entropies, losses = zip(*parts, strict=True)
        return (
            torch.cat(each_logs)[back],
            None if each_entropies[0] is None else torch.cat(each_entropies)[back],
            None if losses[0] is None else torch.stack(losses).mean(),
        )


class SteerKL(TrainerCallback, ExportableState):  # type: ignore[misc]
    """A trainer callback that moves β so that the measured KL reaches the target.

    TRL logs KL per token. Times the mean length, it is the KL in nats per response. A running mean of it is logged as
    ``sequence_kl``. The first third of the run keeps theory's β. Otherwise β would fall while the policy has only begun
    to move.

    Args:
        target: Target KL in nats per response.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.trainer: Any = None
        self.total = self.weight = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to store."""
        beta = self.trainer.beta if self.trainer else None
        return {"args": {}, "attributes": {"total": self.total, "weight": self.weight, "beta": beta}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the state if training goes on from a checkpoint."""
        if state.global_step:  # going on from a checkpoint
            attributes = state.stateful_callbacks[type(self).__name__]["attributes"]
            self.total, self.weight, self.trainer.beta = attributes["total"], attributes["weight"], attributes["beta"]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Update the running mean of KL, and move β towards the target."""
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
