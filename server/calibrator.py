"""Where the quantiles of a prompt come from."""

from infalign.combination import Combination
from server.sampler import Prompt


class Calibrator:
    """The calibrations of one bundle."""

    def __init__(self, combination: Combination) -> None:
        self._bundled = combination
        self._table = combination.table  # now, not within the first request

    def find(self, prompt: Prompt) -> Combination:
        """Reference rewards for ``prompt``, or the pooled ones of all prompts where it is not calibrated."""
        return self._bundled

    async def calibrate(self, prompt: Prompt) -> Combination:
        """Reference rewards for ``prompt``, drawn now where there are none."""
        raise NotImplementedError
