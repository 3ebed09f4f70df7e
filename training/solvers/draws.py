"""The responses of a step: drawn by the policy, scored and calibrated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infalign.templates import prompt_key, render_prompt
from training.sampler import Sampler, tokenise_prompts
from training.seeds import derive_seed
from training.solvers.engine import PolicyEngine
from training.solvers.task import Task


@dataclass(frozen=True)
class Draws:
    """What one process has drawn in a step: m responses to each of some prompts, as rows."""

    prompts: list[list[int]]
    """Token ids of the prompt of each row."""
    responses: list[list[int]]
    """Token ids of the responses."""
    quantiles: NDArray[np.float64]
    """Their calibrated rewards C."""
    rewards: NDArray[np.float64]
    """Their rewards."""


class Drawer:
    """Draws the responses of any step. They depend on the task's seed, the step and the process alone.

    Args:
        task: What the policy is trained for.
        sampler: The policy.
        rank: Number of this process, from 0.
        count: Number of processes, each of which draws its share.
    """

    engine: PolicyEngine | None = None
    """Draws in place of the sampler, if there is one."""

    def __init__(self, task: Task, sampler: Sampler, rank: int = 0, count: int = 1) -> None:
        self._task, self._sampler, self._rank, self._count = task, sampler, rank, count
        self._keys = [prompt_key(render_prompt(sampler.tokenizer, messages)) for messages in task.prompts]
        self.prompts = tokenise_prompts(sampler.tokenizer, task.prompts)
        """Token ids of the prompts of the task."""

    def draw(self, step: int) -> Draws:
        """Draw and score this process's share of a step.

        Args:
            step: Number of the step, from 1.
        """
        config, rank = self._task.config, self._rank
        share = config.prompts // self._count
        rows = self._rows(step)[rank * share : (rank + 1) * share]
        rows = [row for row in rows for _ in range(config.generations)]
        conversations = [self._task.prompts[row] for row in rows]
        seed = derive_seed(self._task.seed, f"step {step} process {rank}")
        if self.engine:
            responses = self.engine.draw(conversations, seed)
        else:
            responses = self._sampler.draw(conversations, seed, None)
        texts = self._task.texts
        answers = texts.read_all(conversations, responses) if texts else self._sampler.text(responses)
        rewards = self._task.scorer.score(conversations, answers).astype(np.float64)
        quantiles = self._task.table.quantile([self._keys[row] for row in rows], rewards)
        return Draws([self.prompts[row] for row in rows], responses, quantiles, rewards)

    def _rows(self, step: int) -> Sequence[int]:
        """Choose the prompts of a step. All prompts come once before one comes again."""
        count, size = len(self._task.prompts), self._task.config.prompts
        places = np.arange((step - 1) * size, step * size)
        orders = {
            epoch: np.random.default_rng((self._task.seed, int(epoch))).permutation(count)
            for epoch in np.unique(places // count)
        }
        return [int(orders[place // count][place % count]) for place in places]
