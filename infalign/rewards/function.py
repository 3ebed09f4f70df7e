"""Functions as rewards, each in a process of its own.

A function that hangs or ends its process harms nobody else: the process is killed after a time limit, and the next call
starts another. If it was a batch that ran out of time, its responses are tried alone, each for a part of the limit and
all together for as long as the limit. So a call takes little more than twice the limit.
"""

import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

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
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lifeline: Connection | None = None
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
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                answer = self._call(([list(prompt) for prompt in prompts], list(responses)), seconds)
            except TimeoutError as error:
                text = f"{self._name} took more than {seconds:g} s for {_count(responses)}"
                raise RewardFailed(text, is_of_content=is_at_fault) from error
        return check_scores(self._name, answer, len(responses), sign_of(self._record.higher_is))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for end in (self._connection, self._lifeline):
            if end is not None:
                end.close()
        self._process = self._connection = self._lifeline = None

    def _start(self) -> None:
        self.close()
        self._connection, far_end = Pipe()
        self._lifeline, far_lifeline = Pipe()
        descriptors = (far_end.fileno(), far_lifeline.fileno())
        command = [sys.executable, "-m", PROCESS, self._record.function, *map(str, descriptors)]
        # Not by multiprocessing: the workers that draw rollouts are its daemons, which may not have children.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=descriptors, start_new_session=True
        )
        far_end.close()
        far_lifeline.close()
        try:
            self._receive(START_SECONDS)
        except (RewardFailed, TimeoutError) as error:
            self.close()
            requirement = f"a function that this environment can import ({error})"
            raise InvalidValue("reward", self._record.function, requirement) from error

    def _call(self, arguments: Any, seconds: float) -> Any:
        assert self._connection is not None  # noqa: S101 - _start opened it
        try:
            self._connection.send(arguments)
        except OSError as error:
            self.close()
            raise RewardFailed(f"{self._name} ended its process") from error
        return self._receive(seconds)

    def _receive(self, seconds: float) -> Any:
        assert self._connection is not None  # noqa: S101 - _start opened it
        try:
            if not self._connection.poll(seconds):
                self.close()
                raise TimeoutError(f"{self._name} took more than {seconds:g} s")
            failure, value = self._connection.recv()
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            self.close()
            raise RewardFailed(f"{self._name} ended its process") from error
        if failure:
            raise RewardFailed(f"{self._name} failed: {failure}")
        return value


def _count(responses: Sequence[str]) -> str:
    return "1 response" if len(responses) == 1 else f"{len(responses)} responses"
