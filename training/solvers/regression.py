"""Solver ``regression``: learns from the stored rollouts alone and draws nothing while it trains (off-policy).

The optimum is known for every response: log π*/π_ref = Φ(C)/β − log Z, where Z is the mean of e^{Φ/β} over the rollouts
of the prompt. The log-ratio of the policy is fitted to it by least squares (arXiv 2507.08068). The solver never sees
what the policy itself would say. Where the target rises steeply, probability can leak to responses that no rollout
resembles. docs/guides/training.md says where the solver works.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model
from scipy.special import logsumexp
from transformers import AutoTokenizer

from infalign.policies import beta_for_kl
from infalign.templates import prompt_key, render_prompt, tokenise
from training.likelihoods import log_probabilities
from training.memory import fit_sequences, model_shape, off_policy_pass
from training.models import load_causal, lora_config, save_model, without_dropout
from training.optimisers import MuonAdam
from training.progress import make_bar
from training.rollouts import read_rollouts
from training.solvers.task import Task

WARM_UP, CLIP, LOGGED_EVERY = 5, 1.0, 10
"""Steps over which the learning rate rises, limit of the gradient's norm, and steps between two log lines."""


@dataclass(frozen=True)
class Group:
    """The stored responses to one prompt, and their targets."""

    prompt: list[int]
    """Token ids of the prompt."""
    responses: list[list[int]]
    """Token ids of K responses."""
    targets: NDArray[np.float64]
    """log π*/π_ref of each response, of shape (K,)."""


def solve(task: Task, directory: Path) -> float:
    """Fit the policy at the β that theory gives for the target KL.

    Args:
        task: What the policy is trained for.
        directory: Directory that the policy is saved in.

    Returns:
        β.
    """
    config = task.config
    torch.manual_seed(task.seed)
    random = np.random.default_rng(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.reference, padding_side="left", trust_remote_code=False)
    policy, reference = without_dropout(load_causal(task.reference)), load_causal(task.reference)
    if config.lora is not None:
        policy = get_peft_model(policy, lora_config(config.lora))
    if task.compute.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()  # without which checkpointing does nothing
    autocast = partial(torch.autocast, policy.device.type, torch.bfloat16, enabled=task.compute.precision == "bfloat16")
    beta = beta_for_kl(task.transformation, config.target_kl)
    groups = list(read_groups(task, tokenizer, beta))
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimiser = (
        MuonAdam(policy, config.learning_rate)
        if config.optimiser == "muon"
        else torch.optim.AdamW(weights, config.learning_rate, weight_decay=0.0)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, 1) * (1 - step / config.steps)
    )
    longest = max(len(group.prompt) + max(map(len, group.responses)) for group in groups)
    need = off_policy_pass(model_shape(policy), config, task.compute, longest, task.law.max_tokens)
    each = fit_sequences(task.directory, "ctrl", config.prompts * config.generations, need)
    order: list[int] = []
    with (
        make_bar("ctrl", config.steps) as progress,
        (task.directory / "metrics.jsonl").open("w", encoding="utf-8") as log,
    ):
        for step in range(1, config.steps + 1):
            if len(order) < config.prompts:
                order = random.permutation(len(groups)).tolist()
            rows, order = order[: config.prompts], order[config.prompts :]
            prompts, responses, targets = [], [], []
            for row in rows:
                group = groups[row]
                indices = random.choice(len(group.responses), min(config.generations, len(group.responses)), False)
                prompts += [group.prompt] * len(indices)
                responses += [group.responses[k] for k in indices]
                targets += group.targets[indices].tolist()
            optimiser.zero_grad()
            loss = 0.0
            for start in range(0, len(responses), each):
                part = slice(start, start + each)
                with autocast():
                    with torch.no_grad():
                        reference_logs = log_probabilities(reference, tokenizer, prompts[part], responses[part])
                    policy_logs = log_probabilities(policy, tokenizer, prompts[part], responses[part])
                goals = torch.tensor(targets[part], dtype=policy_logs.dtype, device=policy_logs.device)
                error = ((policy_logs - reference_logs - goals) ** 2).sum() / len(responses)
                error.backward()
                loss += error.item()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimiser.step()
            schedule.step()
            progress.update(1)
            if step % LOGGED_EVERY == 0 or step == config.steps:
                r2 = 1 - loss / max(float(np.var(targets)), 1e-12)
                log.write(json.dumps({"step": step, "loss": loss, "r2": r2, "beta": beta}) + "\n")
                progress.set_postfix(r2=f"{r2:.3f}")
    save_model(policy, tokenizer, directory)
    return beta


def read_groups(task: Task, tokenizer: Any, beta: float) -> Iterator[Group]:
    """Read the stored rollouts of a task's prompts with their targets.

    Args:
        task: What the policy is trained for.
        tokenizer: Tokenizer of the reference.
        beta: β.

    Yields:
        The rollouts of one prompt.
    """
    prompt_keys = {prompt_key(render_prompt(tokenizer, messages)) for messages in task.prompts}
    for row in read_rollouts(task.rollouts):
        prompt_text = render_prompt(tokenizer, row.prompt)
        key = prompt_key(prompt_text)
        if key in prompt_keys:
            keys = [key] * len(row.tokens)
            rewards = task.combination.combine(keys, row.reward_matrix)
            tilt = task.values(task.table.quantile(keys, rewards), rewards) / beta
            yield Group(tokenise(tokenizer, prompt_text), row.tokens, tilt - logsumexp(tilt) + math.log(len(tilt)))
