"""Reads the beginnings of responses with the prefix scorer of the bundle."""

import numpy as np

from infalign.arrays import Floats
from infalign.calibration import Calibration
from infalign.manifest import ScorerRecord
from infalign.prefix_scorer import PrefixScorer
from infalign.quantile_law import QuantileLaw
from infalign.table import CalibrationTable
from server.decoding.engine_client import translate_errors
from server.decoding.reader import Prompt
from server.engines import Engines, RequestFailed
from server.observability.account import engine_call
from server.observability.metrics import Metrics


class Prefixes:
    """Reads the beginnings of responses. The scorer has the policy's tokens, so it reads them as they were drawn.

    Args:
        engines: The engines, which have the classifier.
        record: How the scorer was made, and how it is used.
        metrics: Observes durations.
    """

    def __init__(self, engines: Engines, record: ScorerRecord, metrics: Metrics) -> None:
        self._engines, self.record, self._metrics = engines, record, metrics
        self.scorer = PrefixScorer(np.array(record.edges))
        """Reads the outputs of the classifier."""

    async def law(self, prompt: Prompt, tokens: list[int]) -> QuantileLaw:
        """Predict the law of the final quantile of a response.

        Args:
            prompt: The prompt.
            tokens: Token ids of the response so far.

        Returns:
            One law, of shape (B,).

        Raises:
            EngineError: The scorer is alive but failed at this prefix.
            Unavailable: The scorer is not up, or has died.
        """
        return self.scorer.quantile_law(await self.read([*prompt.tokens, *tokens]))

    async def calibration(self, prompt: Prompt, table: CalibrationTable) -> Calibration:
        """Predict the calibration of a prompt: the law of the rewards of all responses to it.

        Args:
            prompt: The prompt.
            table: The calibrations of other prompts. The prediction has their estimator and resolution.

        Returns:
            A calibration of the scope ``predicted``.

        Raises:
            EngineError: The scorer is alive but failed at this prompt.
            Unavailable: The scorer is not up, or has died.
        """
        outputs = await self.read(prompt.tokens)
        return self.scorer.calibration(outputs, self.record.anchors, table.estimator, table.resolution)

    async def read(self, tokens: list[int]) -> Floats:
        """Compute the outputs of the classifier.

        Args:
            tokens: Token ids of the prompt and of the response so far.

        Returns:
            (2 B,) outputs, all of them finite.

        Raises:
            EngineError: The scorer is alive but failed at this prefix.
            Unavailable: The scorer is not up, or has died.
        """
        with self._metrics.prefix_seconds.time(), engine_call():
            try:
                return await translate_errors(self._read(tokens))
            except Exception:
                self._metrics.prefix_failures.inc()
                raise

    async def _read(self, tokens: list[int]) -> Floats:
        outputs = np.array(await self._engines.score_prefix(tokens), dtype=np.float64)
        if outputs.shape != (2 * self.scorer.bins,) or not np.all(np.isfinite(outputs)):
            raise RequestFailed(
                f"the prefix scorer gave {outputs.size} numbers, not {2 * self.scorer.bins} finite ones"
            )
        return outputs
