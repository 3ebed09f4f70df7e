"""Replays stopping rules on a pool of scored responses, which needs no server."""

import gzip
import json
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from experiments.quality.figures import Curve, Measured
from experiments.quality.ways import Way, list_ways
from infalign.arrays import Floats
from infalign.calibration import Calibration
from infalign.procedures import BestOfN
from infalign.stopping import Target

ORDERS = 40
"""Random orders of each prompt's responses."""


def read_pool(path: Path) -> tuple[Floats, Floats]:
    """Read the scores and the lengths of a pool.

    Args:
        path: JSON lines of ``{"prompt": ..., "responses": [{"text": ..., "score": ...}, ...]}``, also .gz.

    Returns:
        (P, M) scores, and (P, M) lengths in words.
    """
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line)["responses"] for line in text.splitlines()]
    scores = [[float(one["score"]) for one in row] for row in rows]
    return np.array(scores), np.array([[float(len(one["text"].split())) for one in row] for row in rows])


def replay_pool(scores: Floats, lengths: Floats, seed: int = 0) -> tuple[list[Measured], Curve]:
    """Replay fixed N and adaptive N in waves. Half of the responses are anchors, and the other half is drawn.

    Args:
        scores: (P, M) scores.
        lengths: (P, M) lengths, in words.
        seed: Seed of the orders.

    Returns:
        What each rule gave, and fixed N. True quantiles are ranks in the whole pool, which no rule sees.
    """
    half = scores.shape[1] // 2
    ways = [way for way in list_ways("best", False, ()) if way.fields["n"] <= half or "target_quantile" in way.fields]
    rng = np.random.default_rng(seed)
    true = (rankdata(scores, axis=1) - 0.5) / scores.shape[1]
    orders = rng.permuted(np.tile(np.arange(scores.shape[1]), (len(scores), ORDERS, 1)), axis=-1)
    measured = [_replay(way, scores, true, lengths, orders, half) for way in ways]
    return measured, Curve(true, lengths.mean(axis=1))


def _replay(way: Way, scores: Floats, true: Floats, lengths: Floats, orders: NDArray[np.int_], half: int) -> Measured:
    quantiles, tokens = np.zeros(len(scores)), np.zeros(len(scores))
    for place, prompt_orders in enumerate(orders):
        for order in prompt_orders:
            anchors, drawn = order[:half], order[half:]
            count = _count(way, scores[place, drawn], scores[place, anchors])
            selected = drawn[np.argmax(scores[place, drawn[:count]])]
            quantiles[place] += true[place, selected] / ORDERS
            tokens[place] += lengths[place, drawn[:count]].sum() / ORDERS
    return Measured(way, quantiles, tokens, None, None, None)


def _count(way: Way, draws: Floats, anchors: Floats) -> int:
    """Return how many candidates are drawn."""
    cap = min(int(way.fields["n"]), draws.size)
    if "target_quantile" not in way.fields:
        return cap
    rule = Target(BestOfN(cap), way.fields["target_quantile"])
    calibration = Calibration(anchors, resolution=1e-9)
    ends = accumulate(rule.waves(calibration.samples))
    return next((end for end in ends if rule.reaches(draws[:end], calibration)), cap)
