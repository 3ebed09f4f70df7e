"""What a run says before each stage: which one it is, what it is for, and how long the rest will take."""

import sys
from collections.abc import Mapping, Sequence

from training.stages import STAGES, Stage


class Countdown:
    """Announces stages on stderr and estimates the time that is left.

    Estimates are good for the proportions of the stages, less so for their seconds. The time that finished stages took
    corrects them.

    Args:
        stages: All stages of a run, in order.
    """

    def __init__(self, stages: Sequence[Stage] = STAGES) -> None:
        self._stages = stages
        self._estimates: Mapping[str, float] = {}
        self._estimated = self._seconds = 0.0

    def expect(self, estimates: Mapping[str, float]) -> None:
        """Take estimates.

        Args:
            estimates: Seconds by the name of each stage that will run.
        """
        self._estimates = estimates

    def announce(self, stage: Stage) -> None:
        """Write the line of a stage that is about to be built."""
        place = self._stages.index(stage)
        total = len(self._stages) + 1  # the bundle comes last
        line = f"stage {place + 1} of {total}, {stage.name}: {stage.purpose}{self._time_left(self._stages[place:])}"
        print(line, file=sys.stderr, flush=True)

    def finish(self, stage: Stage, seconds: float) -> None:
        """Note how long a stage took that was built."""
        if estimate := self._estimates.get(stage.name):
            self._estimated += estimate
            self._seconds += seconds

    def _time_left(self, stages: Sequence[Stage]) -> str:
        if not self._estimated:
            return ""
        left = sum(self._estimates.get(stage.name, 0.0) for stage in stages) * self._seconds / self._estimated
        return f" (about {max(1, round(left / 60))} min left)"
