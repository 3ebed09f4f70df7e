"""Measures a prefix scorer on the rollouts of validation prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import betabinom, rankdata
from torch.nn.utils.rnn import pad_sequence

from infalign.arrays import Floats
from infalign.calibration import equivalent_anchors
from infalign.combination import Combination
from infalign.estimators import Estimate, over_prompts
from infalign.manifest import RejectionRecord, ShareRecord
from infalign.prefix_scorer import PrefixScorer
from infalign.procedures import BestOfN, WorstOfN
from infalign.quantile_law import QuantileLaw
from infalign.rehearsal import Rehearsal
from infalign.rejection_fit import fit_rejection, fit_share
from training.figures import flatten_estimates
from training.memory import batches, forward_bytes, model_shape
from training.models import load_classifier
from training.prefix_rows import ScoredPrompt

RESPONSES, BATCH = 32, 256
"""Responses to a prompt that are measured, and responses that are read at a time, at most."""
PLACES = {"start": 0.0, "quarter": 0.25, "half": 0.5, "three_quarters": 0.75, "end": 1.0}
"""Where in a response a scorer is measured, as shares of its length."""
TOP, GROUPS = 0.75, 5
"""The quantile above which a response is in the top quarter, and groups of predicted probabilities."""
TAIL = 0.025
"""Probability on either side of a 95% interval."""
CANDIDATES = (4, 8, 16)
"""The n of best-of-n and worst-of-n that thresholds are fitted for."""


@dataclass(frozen=True)
class Predictions:
    """What a scorer predicts for P prompts, with K responses to each."""

    quantiles: Floats
    """(P, K) final quantiles."""
    rewards: list[Floats]
    """All rewards of each prompt."""
    lengths: NDArray[np.int_]
    """(P, K) lengths in tokens."""
    places: QuantileLaw
    """(P, K, 5, B) laws at :data:`PLACES`."""
    checkpoints: QuantileLaw
    """(P, K, T, B) laws at every checkpoint; after the end of a response, its last law."""
    step: int
    """Tokens between checkpoints."""
    scorer: PrefixScorer
    """What reads the outputs."""
    prompts: Floats
    """(P, 2 B) outputs at the empty prefix."""


@dataclass(frozen=True)
class ScorerFigures:
    """How sharp a scorer is, and how far its probabilities can be trusted."""

    places: dict[str, dict[str, Estimate]]
    """R², log-score and rank correlation by the place in a response."""
    calibration: dict[str, Estimate]
    """Distance of the predicted calibration from the prompt's own, and of the pooled one; and how often the 95%
    intervals of the predicted one cover."""
    reliability: list[dict[str, float]]
    """Predicted and observed share of the top quarter, in groups of equal size."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "places": {
                place: {name: asdict(estimate) for name, estimate in row.items()} for place, row in self.places.items()
            },
            "calibration": {name: asdict(estimate) for name, estimate in self.calibration.items()},
            "reliability": self.reliability,
        }

    def flatten(self) -> dict[str, float]:
        """Return the figures for a manifest. Limits that are unknown are left out."""
        named = {f"{name}_{place}": estimate for place, row in self.places.items() for name, estimate in row.items()}
        named |= {f"calibration_{name}": estimate for name, estimate in self.calibration.items()}
        return flatten_estimates(named)


@torch.inference_mode()
def predict(
    directory: Path,
    prompts: Sequence[ScoredPrompt],
    edges: Sequence[float],
    step: int,
    responses: int = RESPONSES,
) -> Predictions:
    """Let a scorer read the rollouts of prompts.

    Args:
        directory: Directory of the scorer.
        prompts: The rollouts.
        edges: (B + 1,) rewards between which the bins of its law of the reward lie.
        step: Tokens between checkpoints.
        responses: Responses to a prompt that are read at most.
    """
    model, scorer = load_classifier(directory), PrefixScorer(np.array(edges))
    shape, count = model_shape(model), min(responses, len(prompts[0].responses))
    texts = [(prompt.tokens, tokens) for prompt in prompts for tokens in prompt.responses[:count]]
    lengths = np.array([len(tokens) for _, tokens in texts])
    stops = np.arange(step, int(lengths.max()) + 1, step)
    shares = np.array(list(PLACES.values()))
    rows: list[Floats] = []
    for batch in batches(texts, BATCH, lambda text: forward_bytes(shape, len(text[0]) + len(text[1]))):
        tokens = [torch.tensor([*head, *tail], device=model.device) for head, tail in batch]
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        hidden = model.base_model(input_ids=pad_sequence(tokens, batch_first=True), attention_mask=mask)
        outputs = model.score(hidden.last_hidden_state).float().cpu().numpy()
        for (head, tail), row in zip(batch, outputs, strict=True):
            ends = np.concatenate([np.round(shares * len(tail)).astype(int), np.minimum(stops, len(tail))])
            rows.append(row[len(head) - 1 + ends])
    by_prompt = np.array(rows).reshape(len(prompts), count, -1, 2 * scorer.bins)
    laws = scorer.quantile_law(by_prompt).probabilities
    return Predictions(
        quantiles=np.array([prompt.quantiles[:count] for prompt in prompts]),
        rewards=[prompt.rewards for prompt in prompts],
        lengths=lengths.reshape(len(prompts), count),
        places=QuantileLaw(laws[:, :, : len(PLACES)]),
        checkpoints=QuantileLaw(laws[:, :, len(PLACES) :]),
        step=step,
        scorer=scorer,
        prompts=by_prompt[:, 0, 0],
    )


def measure_scorer(predictions: Predictions, combination: Combination) -> ScorerFigures:
    """Compute how sharp a scorer is.

    Args:
        predictions: Its predictions for validation prompts.
        combination: The calibration tables, whose pooled rewards the predicted calibration is compared with.

    Returns:
        The figures, each with an interval over prompts.
    """
    quantiles, laws = predictions.quantiles, predictions.places
    means = laws.mean
    bins = np.minimum((quantiles * laws.bins).astype(int), laws.bins - 1)
    logs = np.log(laws.bins * np.take_along_axis(laws.probabilities, bins[..., None, None], axis=-1)[..., 0])
    variance = np.sum((quantiles - 0.5) ** 2, axis=1)
    places = {}
    for number, place in enumerate(PLACES):
        errors = np.sum((means[:, :, number] - quantiles) ** 2, axis=1)
        places[place] = {
            "r2": over_prompts(np.stack([errors, variance], axis=1), _explained),
            "log_score": over_prompts(logs[:, :, number].mean(axis=1)),
        }
        if number:  # all responses to a prompt start with the same prediction
            places[place]["correlation"] = over_prompts(_correlations(means[:, :, number], quantiles))
    return ScorerFigures(places, _compare_calibrations(predictions, combination), _reliability(laws, quantiles))


def fit_rejections(predictions: Predictions, limit: float) -> dict[str, RejectionRecord]:
    """Fit the thresholds of early rejection for best-of-n and worst-of-n.

    Args:
        predictions: Predictions for validation prompts.
        limit: Largest loss in quantile of the selected candidate.

    Returns:
        By each procedure that there are enough responses for, the threshold and what it did.
    """
    records = {}
    for family, rehearsal in _rehearsals(predictions).items():
        for n in CANDIDATES:
            if n <= predictions.quantiles.shape[1]:
                fitted = fit_rejection(rehearsal, n, limit)
                records[f"{family.removesuffix('n')}{n}"] = RejectionRecord(
                    threshold=fitted.rule.threshold,
                    loss=fitted.loss.value,
                    loss_low=fitted.loss.low,
                    loss_high=fitted.loss.high,
                    saved=fitted.saved.value,
                    saved_low=fitted.saved.low,
                    saved_high=fitted.saved.high,
                )
    return records


def fit_shares(predictions: Predictions) -> dict[str, ShareRecord]:
    """Fit early rejection under a stopping rule.

    Args:
        predictions: Predictions for validation prompts.

    Returns:
        By the family of the procedure, the share and what it did.
    """
    records = {}
    for family, rehearsal in _rehearsals(predictions).items():
        fitted = fit_share(rehearsal)
        tokens = fitted.tokens
        records[family] = ShareRecord(
            share=fitted.share, tokens=tokens.value, tokens_low=tokens.low, tokens_high=tokens.high
        )
    return records


def _rehearsals(predictions: Predictions) -> dict[str, Rehearsal]:
    """The responses for best-of-n, and mirrored for worst-of-n."""
    laws = predictions.checkpoints.probabilities
    best = Rehearsal(predictions.quantiles, predictions.lengths, laws, predictions.step)
    return {BestOfN.family: best, WorstOfN.family: best.mirror}


def _explained(sums: Floats) -> float:
    """R², from sums of squared errors and of squared distances from 1/2."""
    errors, variance = sums.sum(axis=0)
    return float(1 - errors / variance) if variance else 0.0


def _correlations(predicted: Floats, quantiles: Floats) -> Floats:
    """Spearman's correlation within each prompt; 0 where all responses are equal."""
    first, second = rankdata(predicted, axis=1), rankdata(quantiles, axis=1)
    first, second = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    size = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.asarray(np.where(size > 0, (first * second).sum(axis=1) / np.where(size > 0, size, 1), 0.0))


def _compare_calibrations(predictions: Predictions, combination: Combination) -> dict[str, Estimate]:
    """Kolmogorov's distance from the prompt's own rewards, of the predicted and pooled calibrations, and coverage."""
    distances = []
    pooled = combination.table.pooled_calibration
    for outputs, rewards in zip(predictions.prompts, predictions.rewards, strict=True):
        ordered = np.sort(rewards)
        ranks = (ordered.searchsorted(ordered, "left") + ordered.searchsorted(ordered, "right")) / 2 / ordered.size
        expected = predictions.scorer.predicted_quantile(outputs, ordered), pooled.quantile(ordered)
        distances.append([float(np.max(np.abs(each - ranks))) for each in expected])
    table = np.array(distances)
    predicted, pooled_distance = over_prompts(table[:, 0]), over_prompts(table[:, 1])
    error = predicted.value if np.isnan(predicted.high) else predicted.high
    return {
        "predicted": predicted,
        "pooled": pooled_distance,
        "coverage": over_prompts(_cover(predictions, equivalent_anchors(error))),
    }


def _cover(predictions: Predictions, anchors: int) -> Floats:
    """The share of each prompt's rewards that the 95% intervals of the predicted calibration cover.

    A quantile is known only by its rank among the other rewards. So the interval is that of the rank, which is
    beta-binomial.
    """
    shares = []
    for outputs, rewards in zip(predictions.prompts, predictions.rewards, strict=True):
        ordered = np.sort(rewards)
        below, not_above = ordered.searchsorted(rewards, "left"), ordered.searchsorted(rewards, "right")
        rank = predictions.scorer.calibration(outputs, anchors).rank(rewards)
        law = betabinom(max(rewards.size - 1, 1), rank + 0.5, anchors - rank + 0.5)
        middle = (law.cdf(below - 1) + law.cdf(not_above - 1)) / 2
        shares.append(np.mean((middle > TAIL) & (middle < 1 - TAIL)))
    return np.array(shares)


def _reliability(laws: QuantileLaw, quantiles: Floats) -> list[dict[str, float]]:
    """Compare predicted and observed shares of the top quarter, over all places within responses."""
    predicted = laws.exceeds(TOP)[:, :, 1:-1]
    observed = np.broadcast_to((quantiles > TOP)[..., None], predicted.shape)
    prompts = np.broadcast_to(np.arange(len(quantiles))[:, None, None], predicted.shape).ravel()
    rows = []
    for group in np.array_split(np.argsort(predicted, axis=None, kind="stable"), GROUPS):
        if group.size:
            counts = np.bincount(prompts[group], minlength=len(quantiles))
            hits = np.bincount(prompts[group], observed.ravel()[group], minlength=len(quantiles))
            present = counts > 0
            share = over_prompts(np.stack([hits[present], counts[present]], axis=1), _share)
            mean = float(predicted.ravel()[group].mean())
            rows.append({"predicted": mean, "observed": share.value, "low": share.low, "high": share.high})
    return rows


def _share(sums: Floats) -> float:
    hits, counts = sums.sum(axis=0)
    return float(hits / counts)
