"""Averages measurements over seeds and prompts, and compares them with theory."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from experiments.gains.methods import METHODS, Method
from experiments.gains.policies import Job, Measurement
from infalign import Estimate, point
from infalign.arrays import Floats
from infalign.procedures import Procedure

RESAMPLES = 4000


class Results:
    """The figures of all policies.

    Args:
        measurements: What was measured.
        anchors: K.
        methods: Methods in the order of tables. Those that were not measured are left out.
    """

    def __init__(
        self, measurements: Sequence[tuple[Job, Measurement]], anchors: int, methods: Sequence[Method] = METHODS
    ) -> None:
        self._rows = sorted(measurements, key=lambda row: row[0].seed)
        self.anchors = anchors
        measured = {job.method for job, _ in measurements}
        self.methods = [method for method in methods if method in measured]

    def seeds(self, *methods: Method) -> int:
        """Count the seeds that all of some methods have."""
        return min(len(self._of(method)) for method in methods)

    def kl(self, method: Method) -> Estimate:
        """Return the KL of a method on test prompts."""
        return over_seeds(np.array([row.kl for row in self._of(method)]))

    def visible_kl(self, method: Method) -> float:
        """Return the KL that shows in the quantiles of a method."""
        return float(np.mean([row.visible_kl for row in self._of(method)]))

    def wins(self, method: Method, procedure: Procedure, what: str = "wins") -> Estimate:
        """Return the win rate of a method, by the reward that selects responses.

        Args:
            method: The method.
            procedure: How both models are decoded.
            what: ``wins``, ``judged`` (by the judge) or ``train`` (on training prompts).
        """
        return over_seeds(self._values(method, procedure, what))

    def gain(self, better: Method, worse: Method, procedure: Procedure, what: str = "wins") -> Estimate:
        """Return the difference of two methods, seed by seed and prompt by prompt."""
        ours, theirs = (self._values(method, procedure, what) for method in (better, worse))
        seeds = min(len(ours), len(theirs))
        return over_seeds(ours[:seeds] - theirs[:seeds])

    def share(self, better: Method, worse: Method, procedure: Procedure) -> Estimate:
        """Return the share of theory's room that the gain is."""
        gain, room = self.gain(better, worse, procedure), self.room(better, worse, procedure)
        return Estimate(gain.value / room, gain.low / room, gain.high / room)

    def theory(self, method: Method, procedure: Procedure, kl: float | None = None) -> float:
        """Compute what theory allows with K anchors, at the measured KL of a method or at ``kl``."""
        kl = self.kl(method).value if kl is None else kl
        return compute_theory(method, procedure, kl, self.anchors)

    def room(self, better: Method, worse: Method, procedure: Procedure) -> float:
        """Compute by how much one method beats another in theory, each at its measured KL."""
        return self.theory(better, procedure) - self.theory(worse, procedure)

    def _of(self, method: Method) -> list[Measurement]:
        return [row for job, row in self._rows if job.method == method]

    def _values(self, method: Method, procedure: Procedure, what: str) -> Floats:
        """Collect win rates, of shape (S, P) with a row per seed."""
        return np.array([getattr(row, what)[str(procedure)] for row in self._of(method)])


@cache
def compute_theory(method: Method, procedure: Procedure, kl: float, anchors: int) -> float:
    """Compute the win rate of a method in theory.

    Args:
        method: The method.
        procedure: How both models are decoded.
        kl: KL in nats.
        anchors: K.
    """
    return point(
        method.transformation, procedure, kl=kl, anchors=anchors, training_procedure=method.aligned_for
    ).win_rate


def over_seeds(values: Floats) -> Estimate:
    """Average over seeds and prompts.

    Args:
        values: Numbers of shape (S, P).

    Returns:
        The mean with its 95% percentile bootstrap interval, for which both seeds and prompts are resampled.
    """
    random = np.random.default_rng(0)
    seeds, prompts = values.shape
    rows = random.integers(0, seeds, (RESAMPLES, seeds, 1))
    columns = random.integers(0, prompts, (RESAMPLES, 1, prompts))
    means = values[rows, columns].mean(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))
