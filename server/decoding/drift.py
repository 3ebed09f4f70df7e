"""Drift: how far served candidates have moved from what the bundle says about their policy.

The rank of a candidate is the number of the prompt's K reference rewards below its own. From the bundle's record of a
policy, the distribution of these ranks can be predicted. Drift is Kolmogorov's distance of the served ranks from it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from infalign.arrays import Floats
from infalign.calibration import Calibration
from infalign.drift import aligned_rank_law, distance, spread
from infalign.errors import InfAlignError
from infalign.manifest import Alignment, SamplingLaw
from infalign.parsing import parse_procedure, parse_transformation
from infalign.policies import Policy
from server.engines import Sampling
from server.observability.metrics import Metrics

log = logging.getLogger("infalign.server")
WINDOW = 2048
"""The number of latest candidates of each policy that drift is computed from."""
MIN_CANDIDATES, MIN_PROMPTS = 256, 16
"""The least number of candidates, and of different prompts, for which drift is reported.

Candidates of one prompt share its calibration, so many candidates of few prompts would say little.
"""

ServedSpan = tuple[str, int, float, float]
"""Of one candidate: the prompt key, K, and the lowest and highest rank (they differ if its reward ties)."""


@dataclass(eq=False)
class _WatchedPolicy:
    """What is known of one policy."""

    alignment: Alignment | None
    spans: deque[ServedSpan] = field(default_factory=lambda: deque(maxlen=WINDOW))
    predictions: dict[int, Floats | None] = field(default_factory=dict)
    """Predicted distribution of ranks by K; None if it cannot be predicted."""


class Drift:
    """Measures the drift of each policy.

    Only candidates that are comparable count: those of answers without missing candidates, drawn under the bundle's own
    sampling law, for prompts with a calibration of their own.

    Args:
        alignments: By policy name, the bundle's record of its alignment. None for the reference, whose quantiles are
            uniform.
        law: The bundle's sampling law.
        metrics: Reports the drift.
    """

    def __init__(self, alignments: Mapping[str, Alignment | None], law: SamplingLaw, metrics: Metrics) -> None:
        self._policies = {name: _WatchedPolicy(alignment) for name, alignment in alignments.items()}
        self._law, self._metrics = Sampling.from_law(law, policy=None, seed=0), metrics

    def add(self, name: str, alignment: Alignment) -> None:
        """Watch a further policy."""
        self._policies[name] = _WatchedPolicy(alignment)

    def remove(self, name: str) -> None:
        """Stop watching a policy, and remove its metrics."""
        del self._policies[name]
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
        policy = self._policies.get(sampling.policy or "")
        is_comparable = replace(sampling, seed=0, policy=None, logprobs=None) == self._law
        if policy is None or not is_comparable or calibration.scope != "prompt":
            return
        spans, (below, upto) = policy.spans, calibration.span(rewards)
        spans.extend((prompt, calibration.samples, *span) for span in zip(below.tolist(), upto.tolist(), strict=True))
        self._metrics.drift_samples.labels(sampling.policy).set(len(spans))

    async def refresh(self) -> None:
        """Compute the drift of each policy, and update the metrics."""
        for name, policy in list(self._policies.items()):
            spans = list(policy.spans)
            if len(spans) >= MIN_CANDIDATES and len({prompt for prompt, *_ in spans}) >= MIN_PROMPTS:
                value = await asyncio.to_thread(_distance, name, policy, spans)
                if value is not None and self._policies.get(name) is policy:  # not removed meanwhile
                    self._metrics.drift.labels(name).set(value)


def _distance(name: str, policy: _WatchedPolicy, spans: list[ServedSpan]) -> float | None:
    low, high = [], []
    for samples in {samples for _, samples, _, _ in spans}:
        law = _predict(name, policy, samples)
        if law is None:
            return None
        rows = np.array([span for _, of, *span in spans if of == samples])
        ends = spread(law, rows[:, 0], rows[:, 1])
        low.append(ends[0])
        high.append(ends[1])
    return distance(np.concatenate(low), np.concatenate(high))


def _predict(name: str, policy: _WatchedPolicy, samples: int) -> Floats | None:
    """Return the predicted ranks of a policy among K rewards; None, with one log line, if they cannot be predicted."""
    if samples not in policy.predictions:
        try:
            policy.predictions[samples] = predict_ranks(policy.alignment, samples)
        except InfAlignError as error:
            log.warning("no drift of %s: nothing to compare it with: %s", name, error)
            policy.predictions[samples] = None
    return policy.predictions[samples]


def predict_ranks(alignment: Alignment | None, samples: int) -> Floats:
    """Predict the distribution of an aligned policy's ranks.

    It is that of the optimal policy at the KL divergence that was measured. Without a measurement, at the KL divergence
    that follows from the β of training.

    Args:
        alignment: The bundle's record of the alignment. None for the reference.
        samples: K, the number of reference rewards.

    Returns:
        Probability of each rank, of shape (K + 1,).

    Raises:
        InfAlignError: The optimal policy at that KL divergence cannot be computed.
    """
    if alignment is None or alignment.transformation is None or alignment.beta is None:
        return np.full(samples + 1, 1 / (samples + 1))
    procedure = parse_procedure(alignment.procedure)
    kl = alignment.measured.get("kl")
    if kl is None:
        transformation = parse_transformation(alignment.transformation, procedure, beta=alignment.beta)
        kl = Policy.of(transformation, alignment.beta).kl
    if kl <= 0:  # the estimate may be negative; the policy cannot be told from the reference then
        return predict_ranks(None, samples)
    return aligned_rank_law(alignment.transformation, procedure, kl, samples)
