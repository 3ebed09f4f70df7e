"""Describes bundles and policies for people: what they were made of, what they reached, and what theory allows."""

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from infalign.bundle import Bundle, BundledPolicy
from infalign.errors import InfAlignError
from infalign.frontier import point
from infalign.judge_record import JudgeRecord
from infalign.parsing import parse_mixture, parse_procedure
from server.protocol.session import (
    BundleCard,
    Curve,
    Decoded,
    EvaluationFigures,
    Figure,
    Judge,
    JudgedN,
    PolicyCard,
    RewardModelCard,
)

FIGURES = "figures.json"
"""The figures that were measured on test prompts, in the folder of a policy's evaluation."""
WIN_RATE, JUDGED = "win_rate_", "judged_win_rate_"
"""Start of the names of measured figures in a manifest. The procedure follows."""
POINTS = 24
"""Points of a curve of the frontier, besides the one at KL 0."""
LEAST_KL = 1.0
"""Nats that a curve goes to at least."""


def describe_bundle(bundle: Bundle, has_scorer: bool) -> BundleCard:
    """Describe a bundle without its policies.

    Args:
        bundle: The bundle.
        has_scorer: Whether its prefix scorer can be used.
    """
    manifest, record, weights = bundle.manifest, bundle.calibration, bundle.combination.weights
    names = record.model_names if len(weights) > 1 else ["reward"]
    return BundleCard(
        name=manifest.name,
        created=manifest.created,
        reference=manifest.reference,
        reference_origin=manifest.origins.get("reference"),
        reward_models=[
            RewardModelCard(
                name=name,
                share=weight / sum(weights),
                origin=manifest.origins.get(f"reward/{name}") or manifest.origins.get("reward"),
            )
            for name, weight in zip(names, weights, strict=False)
        ],
        sampling=manifest.sampling,
        samples=record.samples,
        prompts=record.prompts,
        has_scorer=has_scorer,
    )


def describe_policy(policy: BundledPolicy) -> PolicyCard:
    """Describe a policy. The first call for a kind of policy takes up to a second, for the curves."""
    record = policy.record
    figures = _read_figures(policy.evaluation / FIGURES) or _find_figures(record.measured)
    largest = max(LEAST_KL, 2 * figures.kl.value) if figures.kl else LEAST_KL
    aligned = () if record.transformation is None else parse_mixture(record.procedure).procedures
    shown = dict.fromkeys(("standard", *map(str, aligned))) if aligned else ()
    curves = (draw_curve(record.transformation or "", name, record.procedure, math.ceil(largest)) for name in shown)
    return PolicyCard(
        transformation=record.transformation,
        beta=record.beta,
        kl=figures.kl,
        decoded=figures.decoded,
        judge=_describe_judge(record.judged) if record.judged else None,
        frontier=[curve for curve in curves if curve],
    )


@lru_cache(maxsize=64)
def draw_curve(transformation: str, procedure: str, aligned_for: str, largest: int) -> Curve | None:
    """Compute what theory allows a policy that is decoded by one procedure, with exact calibration.

    Args:
        transformation: Written form of the transformation.
        procedure: Written form of the procedure that decodes.
        aligned_for: Written form of the procedure or mixture that the policy is aligned for.
        largest: The KL divergence that the curve ends at, in nats.

    Returns:
        The curve; None if theory has no point on it.
    """
    points = {0.0: 0.5}
    for kl in (largest * np.linspace(0, 1, POINTS + 1)[1:] ** 2).tolist():  # a curve is steep at 0
        try:
            found = point(
                transformation, parse_procedure(procedure), kl=kl, training_procedure=parse_mixture(aligned_for)
            )
        except InfAlignError:  # this transformation does not reach that far
            break
        points[round(kl, 6)] = round(found.win_rate, 6)
    if len(points) == 1:
        return None
    return Curve(procedure=procedure, kl=tuple(points), win_rate=tuple(points.values()))


def _describe_judge(record: JudgeRecord) -> Judge:
    support = {
        family: JudgedN(
            n=found.n,
            falls=found.falls,
            peak=found.peak,
            scores={n: Figure(value=score.value, low=score.low, high=score.high) for n, score in found.scores.items()},
        )
        for family, found in record.support.items()
    }
    return Judge(judge=record.judge, prompts=record.prompts, draws=record.draws, support=support)


def _read_figures(path: Path) -> EvaluationFigures | None:
    """Read the figures with their intervals; None if there is no file that has them."""
    try:
        return EvaluationFigures.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _find_figures(measured: Mapping[str, float]) -> EvaluationFigures:
    """Return the figures of a manifest, most of which have no interval."""
    names = [name.removeprefix(WIN_RATE) for name in measured if name.startswith(WIN_RATE)]
    decoded = [
        Decoded(
            procedure=name,
            win_rate=_figure(measured, WIN_RATE + name),
            judged_win_rate=_figure(measured, JUDGED + name) if JUDGED + name in measured else None,
        )
        for name in names
        if not name.endswith(("_low", "_high"))
    ]
    return EvaluationFigures(kl=_figure(measured, "kl") if "kl" in measured else None, decoded=decoded)


def _figure(measured: Mapping[str, float], name: str) -> Figure:
    return Figure(value=measured[name], low=measured.get(f"{name}_low"), high=measured.get(f"{name}_high"))
