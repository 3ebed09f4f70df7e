"""Functions as rewards, each in a process of its own.

A function that hangs or ends its process harms nobody else: the process is killed after a time limit, and the next call
starts another. If it was a batch that ran out of time, its responses are tried alone, each for a part of the limit and
all together for as long as the limit. So a call takes little more than twice the limit.
"""

from collections.abc import Sequence
from threading import Lock

from infalign.child import Child, ChildFailed
from infalign.errors import InvalidValue
from infalign.rewards.base import OpenReward, RewardFailed, check_scores, sign_of
from infalign.rewards.records import FunctionReward
from infalign.templates import Message

PROCESS = "infalign.rewards.function_process"
ALONE = 1 / 4
"""Part of the time limit that a response may take alone, after its batch ran out of time."""
START_SECONDS = 120.0
"""Longest time that importing the function's module may take."""


class Function(OpenReward):
    """A function that is ready to score.

    Args:
        name: Name of the reward, for messages.
        record: Which function it is, and its limits.

    Raises:
        InvalidValue: The function cannot be imported.
    """

    def __init__(self, name: str, record: FunctionReward) -> None:
        self.batch, self.patience = record.batch, record.seconds
        self._name, self._record = f"the function of the reward {name}", record
        self._child = Child(self._name, PROCESS, record.function)
        self._lock = Lock()
        self._start()

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """Score a batch of responses (:meth:`infalign.rewards.base.OpenReward.score`)."""
        return self._score(prompts, responses, self._record.seconds, is_at_fault=len(responses) > 1)

    def score_alone(self, prompt: Sequence[Message], response: str) -> float:
        """Score one response of a batch that failed, in a part of the time limit."""
        (score,) = self._score([prompt], [response], ALONE * self._record.seconds, is_at_fault=True)
        return score

    def _score(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[str], seconds: float, is_at_fault: bool
    ) -> list[float]:
        """Score responses. ``is_at_fault`` says whether one of them is to blame if time runs out."""
        with self._lock:
            if not self._child.is_running:
                self._start()
            try:
                answer = self._child.call(([list(prompt) for prompt in prompts], list(responses)), seconds)
            except ChildFailed as error:
                raise RewardFailed(str(error)) from error
            except TimeoutError as error:
                text = f"{self._name} took more than {seconds:g} s for {_count(responses)}"
                raise RewardFailed(text, is_of_content=is_at_fault) from error
        return check_scores(self._name, answer, len(responses), sign_of(self._record.higher_is))

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _start(self) -> None:
        try:
            self._child.start(START_SECONDS)
        except (ChildFailed, TimeoutError) as error:
            requirement = f"a function that this environment can import ({error})"
            raise InvalidValue("reward", self._record.function, requirement) from error


def _count(responses: Sequence[str]) -> str:
    return "1 response" if len(responses) == 1 else f"{len(responses)} responses"
