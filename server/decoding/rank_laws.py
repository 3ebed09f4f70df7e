"""The ranks that the bundle predicts for the candidates of each policy.

The rank of a candidate is the number of the prompt's K reference rewards below its own. A bundle's record of a policy
says how these ranks are distributed. Drift compares served ranks with it, and the size of waves follows from it.
"""

import asyncio
import logging
from collections.abc import Mapping

import numpy as np

from infalign.arrays import Floats
from infalign.drift import aligned_rank_law
from infalign.errors import InfAlignError
from infalign.manifest import Alignment
from infalign.parsing import parse_mixture, parse_transformation
from infalign.policies import Policy

log = logging.getLogger("infalign.server")
MAX_SAMPLES = 256
"""The largest K for which :meth:`RankLaws.find` predicts ranks. Decisions while drawing need not be more exact."""


class RankLaws:
    """Predicts the ranks of each policy's candidates, once for each K.

    Args:
        alignments: By policy name, the bundle's record of its alignment. None for the reference, whose ranks are
            equally likely.
    """

    def __init__(self, alignments: Mapping[str, Alignment | None]) -> None:
        self._policies: dict[str, tuple[Alignment | None, dict[int, Floats | None]]] = {}
        for name, alignment in alignments.items():
            self.add(name, alignment)

    def add(self, name: str, alignment: Alignment | None) -> None:
        """Add a policy."""
        self._policies[name] = alignment, {}

    def remove(self, name: str) -> None:
        """Remove a policy."""
        del self._policies[name]

    def is_known(self, name: str, samples: int) -> bool:
        """Return whether :meth:`get` answers at once. Otherwise it computes for up to a second."""
        return name not in self._policies or samples in self._policies[name][1]

    def get(self, name: str, samples: int) -> Floats | None:
        """Return the predicted distribution of ranks.

        Args:
            name: Name of the policy.
            samples: K, the number of reference rewards.

        Returns:
            (K + 1,) probabilities; None if there is no such policy, or its ranks cannot be predicted. The latter is
            logged once.
        """
        if name not in self._policies:
            return None
        alignment, laws = self._policies[name]
        if samples not in laws:
            try:
                laws[samples] = predict_ranks(alignment, samples)
            except InfAlignError as error:
                log.warning("no drift of %s: nothing to compare it with: %s", name, error)
                laws[samples] = None
        return laws[samples]

    async def find(self, name: str | None, samples: int) -> Floats | None:
        """Return the predicted distribution of ranks, computed in a thread if it is not known yet.

        Args:
            name: Name of the policy.
            samples: K, the number of reference rewards. Beyond ``MAX_SAMPLES`` the law is that of ``MAX_SAMPLES``.

        Returns:
            Probabilities of the ranks, as :meth:`get` returns them.
        """
        name, samples = name or "", min(samples, MAX_SAMPLES)
        if self.is_known(name, samples):
            return self.get(name, samples)
        return await asyncio.to_thread(self.get, name, samples)


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
    mixture = parse_mixture(alignment.procedure)
    kl = alignment.measured.get("kl")
    if kl is None:
        transformation = parse_transformation(alignment.transformation, mixture, beta=alignment.beta)
        kl = Policy.of(transformation, alignment.beta).kl
    if kl <= 0:  # the estimate may be negative; the policy cannot be told from the reference then
        return predict_ranks(None, samples)
    return aligned_rank_law(alignment.transformation, mixture, kl, samples)
