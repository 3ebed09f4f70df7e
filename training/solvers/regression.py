"""Solver ``regression``: off-policy, on the stored rollouts alone, without drawing anything while it trains.

The optimum is known in closed form on every response: log π*/π_ref = Φ(C)/β − log Z, where Z is the mean of
e^{Φ/β} over the prompt's own rollouts. The policy's log-ratio is fitted to it by least squares (arXiv 2507.08068).
It never sees what the policy itself would say: where the target rises steeply, mass strays to responses that no
rollout resembles. docs/training.md says where it holds.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model
from scipy.special import logsumexp
from transformers import AutoTokenizer

from infalign.frontier import beta_for_kl
from infalign.templates import prompt_key, render_prompt, tokenise
from training.memory import model_shape, off_policy, sequences
from training.models import load_causal, lora, save_model
from training.optimisers import MuonAdam
from training.progress import bar
from training.rollouts import read_rollouts
from training.sampler import log_probabilities
from training.solvers.task import Task

WARM_UP, CLIP, LOGGED_EVERY = 5, 1.0, 10


@dataclass(frozen=True)
class Group:
    """The stored responses to one prompt, and what they are to become."""

    prompt: list[int]
    responses: list[list[int]]
    targets: NDArray[np.float64]
    """log π*/π_ref of each."""


def solve(task: Task, directory: Path) -> float:
    """Fit at theory's β for the target KL."""
    config = task.config
    torch.manual_seed(task.seed)
    random = np.random.default_rng(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.reference, padding_side="left", trust_remote_code=False)
    policy, reference = load_causal(task.reference), load_causal(task.reference)
    if config.lora is not None:
        policy = get_peft_model(policy, lora(config.lora))
    beta = beta_for_kl(task.transformation, config.target_kl)
    stored = list(read_groups(task, tokenizer, beta))
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimiser = (
        MuonAdam(policy, config.learning_rate)
        if config.optimiser == "muon"
        else torch.optim.AdamW(weights, config.learning_rate, weight_decay=0.0)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARM_UP, 1) * (1 - step / config.steps)
    )
    longest = max(len(group.prompt) + max(map(len, group.responses)) for group in stored)
    need = off_policy(model_shape(policy), config, task.compute, longest, task.law.max_tokens)
    each = sequences("ctrl", config.prompts * config.generations, need)
    order: list[int] = []
    with bar("ctrl", config.steps) as progress, (task.directory / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(1, config.steps + 1):
            if len(order) < config.prompts:
                order = random.permutation(len(stored)).tolist()
            picked, order = order[: config.prompts], order[config.prompts :]
            prompts, responses, targets = [], [], []
            for row in picked:
                group = stored[row]
                chosen = random.choice(len(group.responses), min(config.generations, len(group.responses)), False)
                prompts += [group.prompt] * len(chosen)
                responses += [group.responses[k] for k in chosen]
                targets += group.targets[chosen].tolist()
            optimiser.zero_grad()
            loss = 0.0
            for start in range(0, len(responses), each):
                part = slice(start, start + each)
                with torch.no_grad():
                    theirs = log_probabilities(reference, tokenizer, prompts[part], responses[part])
                ours = log_probabilities(policy, tokenizer, prompts[part], responses[part])
                wanted = torch.tensor(targets[part], dtype=ours.dtype, device=ours.device)
                error = ((ours - theirs - wanted) ** 2).sum() / len(responses)
                error.backward()
                loss += error.item()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimiser.step()
            schedule.step()
            progress.update(1)
            if step % LOGGED_EVERY == 0 or step == config.steps:
                explained = 1 - loss / max(float(np.var(targets)), 1e-12)
                log.write(json.dumps({"step": step, "loss": loss, "r2": explained, "beta": beta}) + "\n")
                progress.set_postfix(r2=f"{explained:.3f}")
    save_model(policy, tokenizer, directory)
    return beta


def read_groups(task: Task, tokenizer: Any, beta: float) -> Iterator[Group]:
    """The stored rollouts of the task's prompts, with their targets at ``beta``."""
    wanted = {prompt_key(render_prompt(tokenizer, messages)) for messages in task.prompts}
    for row in read_rollouts(task.rollouts):
        rendered = render_prompt(tokenizer, row.prompt)
        key = prompt_key(rendered)
        if key in wanted:
            keys = [key] * len(row.tokens)
            rewards = task.combination.combine(keys, row.scored)
            tilt = task.values(task.table.quantile(keys, rewards), rewards) / beta
            yield Group(tokenise(tokenizer, rendered), row.tokens, tilt - logsumexp(tilt) + math.log(len(tilt)))
