"""vLLM's scheduler for reward models. vLLM loads this module by its name, in the engine's process."""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class RewardScheduler(Scheduler):  # type: ignore[misc] # vLLM is not followed
    """Scheduler that lets a reward model use its whole context.

    vLLM 0.31 reserves the last position for a token to be sampled. A reward model samples none. If a text fills the
    context and is read in several steps, its last token would never be scheduled (vLLM's pull request 48039).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_sampled_tokens_per_step = 0
