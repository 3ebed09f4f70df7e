"""Drift: how far served candidates have moved from what the bundle says about their policy.

The rank of a candidate is the number of the prompt's K reference rewards below its own. From the bundle's record of a
policy, the distribution of these ranks can be predicted. Drift is Kolmogorov's distance of the served ranks from it.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from infalign.calibration import Calibration
from infalign.drift import distance, spread
from infalign.manifest import Alignment, SamplingLaw
from server.decoding.rank_laws import RankLaws
from server.engines import Sampling
from server.observability.metrics import Metrics

WINDOW = 2048
"""The number of latest candidates of each policy that drift is computed from."""
MIN_CANDIDATES, MIN_PROMPTS = 256, 16
"""The least number of candidates, and of different prompts, for which drift is reported.

Candidates of one prompt share its calibration, so many candidates of few prompts would say little.
"""

ServedSpan = tuple[str, int, float, float]
"""Of one candidate: the prompt key, K, and the lowest and highest rank (they differ if its reward ties)."""


class Drift:
    """Measures the drift of each policy.

    Only candidates that are comparable count: those of answers without missing candidates, drawn under the bundle's own
    sampling law, for prompts with a calibration of their own.

    Args:
        policies: Names of the policies.
        laws: Predicts the ranks of each policy.
        law: The bundle's sampling law.
        metrics: Reports the drift.
    """

    def __init__(self, policies: Iterable[str], laws: RankLaws, law: SamplingLaw, metrics: Metrics) -> None:
        self._served = {name: _spans() for name in policies}
        self._laws, self._law, self._metrics = laws, Sampling.from_law(law, policy=None, seed=0), metrics

    def add(self, name: str, alignment: Alignment) -> None:
        """Watch a further policy."""
        self._laws.add(name, alignment)
        self._served[name] = _spans()

    def remove(self, name: str) -> None:
        """Stop watching a policy, and remove its metrics."""
        self._laws.remove(name)
        del self._served[name]
        self._metrics.drift.remove(name)
        self._metrics.drift_samples.remove(name)

    def observe(self, sampling: Sampling, prompt: str, calibration: Calibration, rewards: Sequence[float]) -> None:
        """Remember the candidates of one answer, if they are comparable.

        Args:
            sampling: How the candidates were drawn.
            prompt: The key of their prompt.
            calibration: The calibration of their quantiles.
            rewards: Their rewards.
        """
        spans = self._served.get(sampling.policy or "")
        is_comparable = replace(sampling, seed=0, policy=None, logprobs=None) == self._law
        if spans is None or not is_comparable or calibration.scope != "prompt":
            return
        below, upto = calibration.span(rewards)
        spans.extend((prompt, calibration.samples, *span) for span in zip(below.tolist(), upto.tolist(), strict=True))
        self._metrics.drift_samples.labels(sampling.policy).set(len(spans))

    async def refresh(self) -> None:
        """Compute the drift of each policy, and update the metrics."""
        for name, served in list(self._served.items()):
            spans = list(served)
            if len(spans) >= MIN_CANDIDATES and len({prompt for prompt, *_ in spans}) >= MIN_PROMPTS:
                value = await asyncio.to_thread(_distance, name, self._laws, spans)
                if value is not None and self._served.get(name) is served:  # not removed meanwhile
                    self._metrics.drift.labels(name).set(value)


def _spans() -> deque[ServedSpan]:
    return deque(maxlen=WINDOW)


def _distance(name: str, laws: RankLaws, spans: list[ServedSpan]) -> float | None:
    low, high = [], []
    for samples in {samples for _, samples, _, _ in spans}:
        law = laws.get(name, samples)
        if law is None:
            return None
        rows = np.array([span for _, of, *span in spans if of == samples])
        ends = spread(law, rows[:, 0], rows[:, 1])
        low.append(ends[0])
        high.append(ends[1])
    return distance(np.concatenate(low), np.concatenate(high))
