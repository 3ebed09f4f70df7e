"""Solver ``ctrl``: learns from responses that the policy draws while it trains (on-policy), in a lean loop.

A step draws responses, scores them, gives each an advantage (:mod:`training.solvers.objectives`) and follows the
gradient (:mod:`training.solvers.gradient`) once. Nothing else takes time. Choices of a step depend on the seed and the
number of the step alone, so a run that goes on from a checkpoint does the same as one that was never stopped.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from peft import get_peft_model
from transformers import AutoTokenizer

from infalign.errors import Diverged
from infalign.manifest import SamplingLaw
from infalign.policies import beta_for_kl
from training import processes
from training.machine import available_memory
from training.memory import SHARE, draw_and_compare_pass, fit_sequences, model_shape, prompt_bytes
from training.models import WithoutAdapter, load_causal, lora_config, place, read_causal, save_model, without_dropout
from training.optimisers import MuonAdam
from training.progress import drop_rows_after, make_bar
from training.sampler import Sampler
from training.shared_prompts import SharedPrompts
from training.solvers.draws import Drawer, Draws
from training.solvers.engine import PolicyEngine
from training.solvers.gradient import History, logit_gradient
from training.solvers.objectives import Objective, make_objective
from training.solvers.steering import Steering
from training.solvers.task import Task

WARM_UP, CLIP = 5, 1.0
"""Steps over which the learning rate rises, and limit of the gradient's norm."""
PART = 64
"""Responses of similar length that are read together. More would be padded more."""
CHECKPOINT = "checkpoint.pt"
ADVICE = "a smaller ctrl.learning_rate helps most"
COLLAPSE, QUANTILE_MEMORY = 0.25, 0.9
"""Running mean of the quantile below which training stops, and weight of the past in it. It starts at the reference's,
0.5, and a policy that learns is above that.
"""


def solve(task: Task, directory: Path) -> float:
    """Train the policy, starting at the β that theory gives for the target KL.

    Args:
        task: What the policy is trained for.
        directory: Directory that the policy is saved in.

    Returns:
        The last β.

    Raises:
        Diverged: The KL or the gradient is not finite, or the rewards have collapsed.
        EngineFailed: The engine that draws did not start, or failed.
    """
    run = _Run(task)
    try:
        return run.train(directory)
    finally:
        run.close()


class _Run:
    """One run of the solver in one process."""

    def __init__(self, task: Task) -> None:
        config, compute = task.config, task.compute
        self._task, self._config = task, config
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if compute.precision == "bfloat16" else "no",
            log_with=list(compute.report_to) or None,
            project_dir=str(task.directory),
        )
        tokenizer = AutoTokenizer.from_pretrained(task.reference, padding_side="left", trust_remote_code=False)
        policy = without_dropout(place(read_causal(task.reference)))
        if config.lora is not None:
            torch.manual_seed(task.seed)  # all processes start from the same adapter
            policy = get_peft_model(policy, lora_config(config.lora))
        if compute.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        self._reference = load_causal(task.reference) if config.lora is None else WithoutAdapter(policy)
        self._sampler = Sampler(policy.eval(), tokenizer, SamplingLaw(max_tokens=task.law.max_tokens))
        self._weights = [weight for weight in policy.parameters() if weight.requires_grad]
        self._optimiser = (
            MuonAdam(policy, config.learning_rate)
            if config.optimiser == "muon"
            else torch.optim.Adam(self._weights, config.learning_rate, betas=(0.9, 0.98))
        )
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._objective: Objective = make_objective(task)
        self._steering = Steering(config.target_kl, beta_for_kl(task.transformation, config.target_kl))
        self._history = History(task.law.max_tokens)
        self._drawer = Drawer(task, self._sampler, processes.rank(), processes.count())
        shape, response = model_shape(policy), task.law.max_tokens
        prompt = max(map(len, self._drawer.prompts))
        need = draw_and_compare_pass(shape, config, compute, prompt + response, response, task.scorer.scorers.memory)
        batch = config.prompts * config.generations
        self._each = fit_sequences(task.directory, "ctrl", batch, need, processes.count())
        prompts = prompt_bytes(shape, compute, config.prompts // processes.count(), prompt)
        responses = replace(need, length=response).bytes(min(self._each, PART))
        fits = responses + prompts < SHARE * available_memory()
        self._is_shared = processes.broadcast(fits) and not compute.gradient_checkpointing
        self._quantile = 0.5
        """Running mean of the quantile."""
        self._saved = 0
        """Step of the last checkpoint; 0 without one."""
        if config.engine == "vllm":
            weights = task.directory / f"engine-{processes.rank()}"
            self._drawer.engine = PolicyEngine(policy, tokenizer, task.reference, self._sampler.law, weights)

    def close(self) -> None:
        """Stop the engine, if there is one."""
        if self._drawer.engine:
            self._drawer.engine.close()

    def train(self, directory: Path) -> float:
        """Take all steps, and save the policy. See :func:`solve`."""
        config, metrics = self._config, self._task.directory / "metrics.jsonl"
        self._load()
        first = processes.is_first()
        if first:
            drop_rows_after(metrics, self._saved)
        self._accelerator.init_trackers("ctrl")
        with make_bar("ctrl", config.steps, self._saved) as bar:
            for step in range(self._saved + 1, config.steps + 1):
                figures = self._step(step)
                if first:
                    with metrics.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"step": step, **figures}) + "\n")
                    bar.set_postfix({name: f"{figures[name]:.3f}" for name in ("sequence_kl", "quantile")})
                self._accelerator.log(figures, step=step)
                bar.update(1)
                if step % self._task.compute.save_every == 0:
                    self._save(step)
        for tracker in self._accelerator.trackers:
            tracker.finish()
        if first:
            save_model(self._sampler.model, self._sampler.tokenizer, directory)
            (self._task.directory / CHECKPOINT).unlink(missing_ok=True)
        self._accelerator.wait_for_everyone()
        return self._steering.base

    def _step(self, step: int) -> dict[str, float]:
        """Take one step. Returns its metrics, over all processes."""
        config, progress = self._config, (step - 1) / self._config.steps
        draws = self._drawer.draw(step)
        shape = (-1, config.generations)
        quantiles, rewards = (self._gather(values).reshape(shape) for values in (draws.quantiles, draws.rewards))
        advantages = self._objective.advantages(quantiles, rewards, progress).ravel()
        rank, size = processes.rank(), len(draws.responses)
        kl = self._differentiate(draws, advantages[rank * size : (rank + 1) * size])
        norm = self._update(step)
        figures = {
            "kl": kl,
            "sequence_kl": self._steering.update(kl, progress) if math.isfinite(kl) else kl,
            "beta": self._steering.beta,
            "quantile": float(quantiles.mean()),
            "reward_raw": float(rewards.mean()),
            "advantage_deviation": float(advantages.std()),
            "grad_norm": norm,
            "mean_length": float(np.mean([len(tokens) for tokens in draws.responses])),
        }
        self._quantile = QUANTILE_MEMORY * self._quantile + (1 - QUANTILE_MEMORY) * figures["quantile"]
        self._check(step, figures)
        return figures

    def _differentiate(self, draws: Draws, advantages: NDArray[np.float64]) -> float:
        """Compute the gradient of this process's share. Returns the mean KL over all processes."""
        order = sorted(range(len(draws.responses)), key=lambda row: len(draws.responses[row]))
        size, device, part = len(order), self._sampler.model.device, min(self._each, PART)
        kl, sums = 0.0, torch.zeros_like(self._history.sums)
        self._optimiser.zero_grad()
        self._sampler.model.train(self._task.compute.gradient_checkpointing)  # which does nothing otherwise
        with self._accelerator.autocast():
            ours = self._share_prompts(self._sampler.model, draws)
            with torch.no_grad():
                theirs = self._share_prompts(self._reference, draws)
        for start in range(0, size, part):
            rows = order[start : start + part]
            responses = [draws.responses[row] for row in rows]
            with self._accelerator.autocast():
                with torch.no_grad():
                    reference_logits = theirs.logits(rows, responses)
                policy_logits = ours.logits(rows, responses)
            lengths = torch.tensor([len(tokens) for tokens in responses], device=device)
            mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
            tokens = torch.tensor([token for tokens in responses for token in tokens], device=device)
            values = torch.tensor(advantages[rows], dtype=policy_logits.dtype, device=device)
            gradient = logit_gradient(
                policy_logits, reference_logits, tokens, mask, values, self._steering.beta, self._history
            )
            policy_logits.backward(gradient.logits / size)
            sums += self._history.summarise(gradient, mask, values)
            kl += float(gradient.kl.sum()) / size
        ours.backward()
        self._sampler.model.eval()
        mean_kl, sums = self._reduce([torch.tensor([kl]), sums])
        self._history.update(sums)
        return float(mean_kl)

    def _share_prompts(self, model: Any, draws: Draws) -> SharedPrompts:
        return SharedPrompts(model, self._sampler.tokenizer, draws.prompts, self._is_shared)

    def _update(self, step: int) -> float:
        """Follow the gradient of all processes. Returns its norm."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if processes.count() > 1:
            for gradient, mean in zip(gradients, self._reduce(gradients), strict=True):
                gradient.copy_(mean)
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, CLIP))
        schedule = min(step / WARM_UP, 1) * (1 - (step - 1) / self._config.steps)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * schedule
        if math.isfinite(norm):
            self._optimiser.step()
        return norm

    def _gather(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Collect the values of all processes, in their order."""
        if processes.count() == 1:
            return values
        tensor = torch.tensor(values, device=self._accelerator.device)
        return np.asarray(self._accelerator.gather(tensor).cpu().numpy())

    def _reduce(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the means of tensors over all processes."""
        if processes.count() == 1:
            return list(tensors)
        placed = [tensor.to(self._accelerator.device) for tensor in tensors]
        return [self._accelerator.reduce(tensor, "mean").to(tensor.device) for tensor in placed]

    def _check(self, step: int, figures: dict[str, float]) -> None:
        """Stop a run that has diverged."""
        last = f"the last checkpoint is of step {self._saved}" if self._saved else "no checkpoint was written yet"
        for name in ("kl", "grad_norm"):
            if not math.isfinite(figures[name]):
                raise Diverged(f"ctrl: {name} is {figures[name]} at step {step}; {last}; {ADVICE}")
        if self._quantile < COLLAPSE:
            raise Diverged(
                f"ctrl: the mean quantile of recent steps is {self._quantile:.3f} at step {step}, below {COLLAPSE}, "
                f"where the reference has 0.5: rewards have collapsed; {last}; {ADVICE}"
            )

    def _save(self, step: int) -> None:
        """Write a checkpoint, whole or not at all."""
        self._saved = step
        if not processes.is_first():
            return
        path = self._task.directory / CHECKPOINT
        weights = {name: weight for name, weight in self._sampler.model.named_parameters() if weight.requires_grad}
        state = {
            "step": step,
            "weights": {name: weight.detach() for name, weight in weights.items()},
            "optimiser": self._optimiser.state_dict(),
            "steering": {"base": self._steering.base, "total": self._steering.total, "weight": self._steering.weight},
            "law": None if self._objective.law is None else torch.tensor(self._objective.law),
            "history": self._history.sums,
            "quantile": self._quantile,
            "each": self._each,
            "shared": self._is_shared,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _load(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self._task.directory / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._sampler.model.load_state_dict(state["weights"], strict=False)
        self._optimiser.load_state_dict(state["optimiser"])
        for name, value in state["steering"].items():
            setattr(self._steering, name, value)
        self._objective.law = None if state["law"] is None else state["law"].numpy()
        self._history.sums, self._quantile = state["history"], state["quantile"]
        self._each = min(self._each, state["each"])  # sums in other parts would differ by rounding
        self._is_shared &= state["shared"]
        self._saved = state["step"]
