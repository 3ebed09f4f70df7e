"""The prefix scorer: predicts the final quantile of a response from the prompt and the text so far.

A prefix scorer (Mudgal et al., Controlled Decoding, arXiv 2310.17022) is a sequence classifier on a causal LM. It reads
the tokens of the prompt and of the response so far, and has 2 B outputs. A softmax makes two laws of them:

- the first B outputs are the law of the quantile: of the response, among all responses of the reference to the prompt;
- the last B outputs are the law of the reward: of all responses of the reference to the prompt, before the first token.
  They predict the calibration of a prompt that was never calibrated. The quantile cannot do this, since it is uniform
  for every prompt by definition.

The directory of a scorer has ``scorer.json`` beside the classifier.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from infalign.arrays import Floats, check_finite
from infalign.calibration import Calibration, Estimator
from infalign.errors import InvalidValue
from infalign.files import read_record
from infalign.manifest import ScorerRecord
from infalign.quantile_law import QuantileLaw

RECORD = "scorer.json"
"""File of the record."""


@dataclass(frozen=True)
class PrefixScorer:
    """Reads the outputs of the classifier of a prefix scorer.

    Args:
        edges: (B + 1,) rewards between which the bins of the law of the reward lie, in increasing order.

    Raises:
        InvalidValue: The edges are too few, not finite or not in increasing order.

    Examples:
        >>> import numpy as np
        >>> from infalign import PrefixScorer
        >>> scorer = PrefixScorer(np.array([-1.0, 0.0, 2.0]))
        >>> scorer.quantile_law([np.log(3), 0.0, 0.0, 0.0]).probabilities.round(3).tolist()
        [0.75, 0.25]
        >>> scorer.predicted_quantile([np.log(3), 0.0, 0.0, 0.0], [-3.0, 0.0, 1.0]).tolist()
        [0.0, 0.5, 0.75]
    """

    edges: Floats

    def __post_init__(self) -> None:
        edges = check_finite("edges", self.edges)
        if edges.ndim != 1 or edges.size < 2 or np.any(np.diff(edges) < 0):
            raise InvalidValue("edges", edges.tolist(), "at least two rewards in increasing order")
        object.__setattr__(self, "edges", edges)

    @property
    def bins(self) -> int:
        """B, the number of bins."""
        return int(self.edges.size - 1)

    def quantile_law(self, outputs: ArrayLike) -> QuantileLaw:
        """Compute the laws of the final quantiles of responses.

        Args:
            outputs: (..., 2 B) outputs of the classifier at the last token, without an activation.

        Returns:
            Laws of shape (..., B).
        """
        return QuantileLaw(softmax(self._check(outputs)[..., : self.bins], axis=-1))

    def reward_law(self, outputs: ArrayLike) -> QuantileLaw:
        """Compute the laws of the rewards of all responses to prompts.

        Args:
            outputs: (..., 2 B) outputs of the classifier at the last token of the prompt, without an activation.

        Returns:
            Laws of shape (..., B). Bin b stands for the rewards from ``edges[b]`` to ``edges[b + 1]``.
        """
        return QuantileLaw(softmax(self._check(outputs)[..., self.bins :], axis=-1))

    def predicted_quantile(self, outputs: ArrayLike, rewards: ArrayLike) -> Floats:
        """Predict the quantiles of rewards for a prompt that was never calibrated.

        Args:
            outputs: (2 B,) outputs of the classifier at the last token of the prompt, without an activation.
            rewards: Rewards of any shape.

        Returns:
            Quantiles in the shape of ``rewards``, linear between the edges.
        """
        return np.asarray(np.interp(check_finite("rewards", rewards), self.edges, self._below(outputs)))

    def calibration(
        self,
        outputs: ArrayLike,
        samples: int,
        estimator: Estimator = Estimator.JEFFREYS,
        resolution: float = 1e-4,
    ) -> Calibration:
        """Predict the calibration of a prompt that was never calibrated.

        Its anchors are the quantiles (i + ½)/S of the predicted law of the reward. Their number says how exact the
        prediction is, so intervals, bounds and stopping rules take its error into account.

        Args:
            outputs: (2 B,) outputs of the classifier at the last token of the prompt, without an activation.
            samples: S, the number of anchors, such as :attr:`infalign.manifest.ScorerRecord.anchors`.
            estimator: How ranks become quantiles.
            resolution: Width of the grid that rewards are compared on.

        Returns:
            The calibration, of the scope ``predicted``.

        Raises:
            InvalidValue: There are fewer than one sample, or outputs of another number of bins.

        Examples:
            >>> import numpy as np
            >>> from infalign import PrefixScorer
            >>> scorer = PrefixScorer(np.array([-1.0, 0.0, 2.0]))
            >>> calibration = scorer.calibration([0.0, 0.0, np.log(3), 0.0], samples=4)
            >>> calibration.quantile([-2.0, 0.0, 1.5]).round(2).tolist()
            [0.1, 0.7, 0.9]
            >>> [round(float(end), 2) for end in calibration.interval(0.0)]
            [0.25, 0.96]
        """
        if samples < 1:
            raise InvalidValue("samples", samples, "a whole number of at least 1")
        anchors = np.interp((np.arange(samples) + 0.5) / samples, self._below(outputs), self.edges)
        return Calibration(anchors, "predicted", estimator, resolution)

    def _below(self, outputs: ArrayLike) -> Floats:
        """(B + 1,) predicted share of the rewards below each edge."""
        return np.concatenate([[0.0], np.cumsum(self.reward_law(outputs).probabilities)])

    def _check(self, outputs: ArrayLike) -> Floats:
        values = check_finite("outputs", outputs)
        if values.shape[-1:] != (2 * self.bins,):
            raise InvalidValue("outputs", values.shape, f"(..., {2 * self.bins}) outputs for {self.bins} bins")
        return values


def save_scorer(directory: Path, record: ScorerRecord) -> None:
    """Write the record of a prefix scorer.

    Args:
        directory: Directory of the classifier.
        record: How it was made.
    """
    (directory / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_scorer(directory: Path) -> tuple[PrefixScorer, ScorerRecord]:
    """Read the record that :func:`save_scorer` wrote.

    Args:
        directory: Directory of the classifier.

    Returns:
        What reads the outputs of the classifier, and the record.

    Raises:
        BundleCorrupt: The record is not a JSON object.
        BundleMismatch: The record lacks something.
    """
    record = read_record(ScorerRecord, directory / RECORD)
    return PrefixScorer(np.array(record.edges)), record
