"""Drift: how far the candidates that are served have moved from what the bundle says of their policy."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from infalign.calibration import Calibration
from infalign.drift import aligned_rank_law, distance, spread
from infalign.errors import InfAlignError
from infalign.frontier import kl
from infalign.manifest import Alignment, SamplingLaw
from infalign.procedures import parse_procedure
from infalign.transforms import parse_transformation
from server.engines import Sampling
from server.metrics import Metrics

log = logging.getLogger("infalign.server")
WINDOW = 2048
"""Candidates that are looked back on, for each policy."""
FEWEST, FEWEST_PROMPTS = 256, 16
"""Candidates, and different prompts, below which nothing is said: candidates of one prompt share its calibration."""

Floats = NDArray[np.float64]
Seen = tuple[str, int, float, float]
"""Prompt, K, and the candidate's span of ranks."""


@dataclass(eq=False)
class _Policy:
    """What is known of one policy that is watched."""

    alignment: Alignment | None
    served: deque[Seen] = field(default_factory=lambda: deque(maxlen=WINDOW))
    laws: dict[int, Floats | None] = field(default_factory=dict)
    """Predicted ranks by the number of anchors, None where nothing can be predicted."""


class Drift:
    """The distance of served ranks from predicted ones, by policy.

    Only what is comparable counts: candidates of answers in which none is missing, drawn under the bundle's own law,
    read from their prompt's own calibration.

    Args:
        alignments: of each policy that is watched; None for the reference, whose quantiles are uniform.
    """

    def __init__(self, alignments: Mapping[str, Alignment | None], law: SamplingLaw, metrics: Metrics) -> None:
        self._policies = {name: _Policy(alignment) for name, alignment in alignments.items()}
        self._law, self._metrics = Sampling(**law.model_dump(), seed=0, policy=None), metrics

    def add(self, name: str, alignment: Alignment) -> None:
        """Watch one more policy."""
        self._policies[name] = _Policy(alignment)

    def remove(self, name: str) -> None:
        """Watch one less, and say nothing of it any more."""
        del self._policies[name]
        self._metrics.drift.remove(name)
        self._metrics.drift_samples.remove(name)

    def observe(self, sampling: Sampling, prompt: str, calibration: Calibration, rewards: Sequence[float]) -> None:
        """Remember all candidates of one answer, if they count; ``prompt`` is the key of theirs."""
        policy = self._policies.get(sampling.policy or "")
        lawful = replace(sampling, seed=0, policy=None, logprobs=None) == self._law
        if policy is None or not lawful or calibration.scope != "prompt":
            return
        served, (below, upto) = policy.served, calibration.span(rewards)
        served.extend((prompt, calibration.samples, *span) for span in zip(below.tolist(), upto.tolist(), strict=True))
        self._metrics.drift_samples.labels(sampling.policy).set(len(served))

    async def refresh(self) -> None:
        """Set the gauges by what has been served."""
        for name, policy in list(self._policies.items()):
            now = list(policy.served)
            if len(now) >= FEWEST and len({prompt for prompt, *_ in now}) >= FEWEST_PROMPTS:
                value = await asyncio.to_thread(_distance, name, policy, now)
                if value is not None and self._policies.get(name) is policy:  # else it was removed meanwhile
                    self._metrics.drift.labels(name).set(value)


def _distance(name: str, policy: _Policy, served: list[Seen]) -> float | None:
    low, high = [], []
    for samples in {samples for _, samples, _, _ in served}:
        law = _law_of(name, policy, samples)
        if law is None:
            return None
        spans = np.array([span for _, of, *span in served if of == samples])
        ends = spread(law, spans[:, 0], spans[:, 1])
        low.append(ends[0])
        high.append(ends[1])
    return distance(np.concatenate(low), np.concatenate(high))


def _law_of(name: str, policy: _Policy, samples: int) -> Floats | None:
    """The ranks that are predicted among ``samples`` rewards; None, and said once, where nothing can be."""
    if samples not in policy.laws:
        try:
            policy.laws[samples] = predicted(policy.alignment, samples)
        except InfAlignError as error:
            log.warning("no drift of %s: nothing to compare it with: %s", name, error)
            policy.laws[samples] = None
    return policy.laws[samples]


def predicted(alignment: Alignment | None, samples: int) -> Floats:
    """(K + 1,) probability of each rank: of the optimum at the KL that was measured, or without one at the β recorded.

    Raises:
        InfAlignError: the optimum at that KL cannot be computed.
    """
    if alignment is None:
        return np.full(samples + 1, 1 / (samples + 1))
    procedure = parse_procedure(alignment.procedure)
    reached = alignment.measured.get("kl")
    if reached is None:
        reached = kl(parse_transformation(alignment.transformation, procedure, beta=alignment.beta), alignment.beta)
    if reached <= 0:  # an estimate; the policy is the reference as far as anyone can tell
        return predicted(None, samples)
    return aligned_rank_law(alignment.transformation, procedure, reached, samples)
