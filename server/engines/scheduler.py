"""VLLM's scheduler for reward models. Loaded by vLLM, in an engine's process, by its name."""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class RewardScheduler(Scheduler):  # type: ignore[misc] # vLLM is not followed
    """A scheduler that gives a reward model all its context.

    vLLM 0.31 keeps the last place for a token that is sampled. A reward model samples none: of a text that fills the
    context and is read in several steps, the last token would never be scheduled (vLLM's pull request 48039).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_sampled_tokens_per_step = 0
