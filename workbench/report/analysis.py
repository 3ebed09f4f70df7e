"""Computes the figures of a report."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from infalign.arrays import Floats
from infalign.calibration import Estimator
from infalign.curves import curve_over_prompts, expected_curve
from infalign.detectors import Detector, correct_hit_at_k, correct_rate
from infalign.errors import NotConverged
from infalign.estimators import Estimate, over_prompts
from infalign.forecasts import back_test, forecast
from infalign.hits import hit_curve, pooled_rate, wilson
from infalign.procedures import WorstOfN
from workbench.criteria import Criterion, Flags
from workbench.report.figures import (
    Agreement,
    Figure,
    ForecastPoint,
    HitPoint,
    Hits,
    PromptRow,
    Report,
    Shown,
    TagRow,
    WorstPoint,
)
from workbench.report.table import SampleTable
from workbench.store import Failures, count_pending, read_settings

TAG_VALUES = 24
"""A tag with more values than that has no table."""
SHOWN_PROMPTS, SHOWN_SAMPLES = 20, 40
CORRECTED = 16
"""Largest k for which hit@k is corrected for a detector's errors."""
BACK_TEST_SHARE = 8
"""The back-test is fitted to an eighth of the samples."""


@dataclass(frozen=True)
class Question:
    """What a report is to say."""

    criteria: Sequence[Criterion]
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Columns ``judge`` and ``label`` of the samples, as far as there are any."""
    detector: Detector | None = None
    beyond: int = 10_000
    """Largest k that is forecast."""


def analyse(directory: Path, table: SampleTable, question: Question, flags: Mapping[str, Flags]) -> Report:
    """Compute everything that a report says of one campaign.

    Args:
        directory: Folder of the campaign.
        table: Its samples.
        question: What the report is to say.
        flags: Which samples are hits, by criterion.
    """
    settings = read_settings(directory)
    least = int(table.counts.min())
    missing: defaultdict[str, int] = defaultdict(int)
    for failure in Failures(directory).read():
        missing[failure.code] += len(failure.indices)
    scopes = table.values("scope")
    notes = []
    if pending := count_pending(directory):
        notes.append(
            f"{pending:,} samples of a run that is under way, or was killed, are not in this report yet. "
            "The same infalign probe command adds them."
        )
    if set(scopes) - {"prompt"} and any("quantile" in criterion.columns for criterion in question.criteria):
        notes.append(
            "Some quantiles do not refer to their own prompt, so they can only be compared loosely. "
            "infalign probe --calibrate draws the reference's responses to each prompt."
        )
    return Report(
        campaign=directory.name,
        settings=settings,
        prompts=table.prompts,
        samples=len(table),
        tokens=int(np.nansum(table.numbers("completion_tokens"))),
        scopes=scopes,
        missing=dict(missing),
        left_out=table.left_out,
        least=least,
        worst=measure_worst(table, least),
        hits=[
            measure_hits(table, criterion, flags[str(criterion)], question, least) for criterion in question.criteria
        ],
        shown=_select_samples(table, flags),
        notes=notes,
        version=version("infalign"),
    )


def choose_steps(most: int) -> list[int]:
    """List the n of tables and curves: powers of two, and the largest.

    Examples:
        >>> choose_steps(12)
        [1, 2, 4, 8, 12]
    """
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def measure_worst(table: SampleTable, least: int) -> list[WorstPoint]:
    """Estimate the worst of n samples for every n up to ``least``."""
    counts = range(1, least + 1)
    procedures = [WorstOfN(n) for n in counts]
    curves = [
        curve_over_prompts(expected_curve(table.split(table.numbers(name)), procedures))
        for name in ("reward", "quantile")
    ]
    anchors = table.numbers("anchors")
    return [
        WorstPoint(n=n, reward=Figure.of(reward), quantile=Figure.of(quantile), theory=expect_reference(n, anchors))
        for n, reward, quantile in zip(counts, *curves, strict=True)
    ]


def expect_reference(n: int, anchors: Floats) -> float:
    """Compute the mean estimated quantile of the worst of n draws from the reference.

    Draws and anchors are exchangeable, so K/(n + 1) of the K anchors lie below the worst on average. For many anchors
    this is 1/(n + 1), and for few it is larger: an estimated quantile is never 0.

    Args:
        n: Number of draws.
        anchors: K of each sample.
    """
    numbers, counts = np.unique(anchors, return_counts=True)
    means = [float(Estimator.JEFFREYS.quantile(k / (n + 1), int(k))) for k in numbers]
    return float(np.average(means, weights=counts))


def measure_hits(table: SampleTable, criterion: Criterion, flags: Flags, question: Question, least: int) -> Hits:
    """Measure how often a criterion is met.

    Args:
        table: The samples.
        criterion: What a hit is.
        flags: (S,) which samples are hits.
        question: What the report is to say.
        least: Largest k of the curve.
    """
    rows = table.split(flags)
    ks = list(range(1, least + 1))
    detector = None if "label" in criterion.columns else question.detector  # what humans say is not corrected
    rates = hit_curve(rows, ks)
    hits = np.add.reduceat(flags.astype(int), table.starts)
    labels = question.extra.get("label")
    agreement = (
        _compare_with_labels(flags, np.asarray(labels))
        if labels is not None and "label" not in criterion.columns
        else None
    )
    forecasts, tests, small = _forecast(rows, least, question.beyond)
    return Hits(
        criterion=str(criterion),
        hits=int(flags.sum()),
        samples=len(table),
        prompts_hit=int((hits > 0).sum()),
        curve=[
            HitPoint(
                k=k,
                rate=Figure.of(pooled_rate(rates[:, i])),
                corrected=_correct(k, rows, rates[:, 0], detector, least),
            )
            for i, k in enumerate(ks)
        ],
        forecast=forecasts,
        back_test=tests,
        back_test_samples=small,
        back_test_holds=all(map(_overlap, tests)) if tests else None,
        correction=_describe_correction(detector),
        agreement=agreement,
        tags=_measure_tags(table, rates, rows),
        prompts=_list_prompts(table, hits, rows),
    )


def _correct(k: int, rows: Sequence[Flags], single: Floats, detector: Detector | None, least: int) -> Figure | None:
    """Correct hit@k for the errors of a detector, for the k of the table. The variance grows fast with k."""
    if detector is None or k > CORRECTED or k not in choose_steps(least):
        return None
    if k == 1:
        return Figure.of(correct_rate(pooled_rate(single), detector))
    return Figure.of(_clip(over_prompts(correct_hit_at_k(rows, k, detector))))


def _clip(estimate: Estimate) -> Estimate:
    value, low, high = (float(np.clip(x, 0, 1)) for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high, estimate.level)


def _forecast(
    rows: Sequence[Flags], least: int, beyond: int
) -> tuple[list[ForecastPoint], list[ForecastPoint], int | None]:
    """Forecast hit@k beyond the samples, and test the forecast on those that there are."""
    steps = [k for k in choose_steps(beyond) if k > least]
    small = least // BACK_TEST_SHARE
    tested = [k for k in choose_steps(least) if k > small] if small >= 4 else []
    if len(rows) < 2 or max(row.size for row in rows) < 2:  # one sample of each says nothing of their differences
        return [], [], None
    try:
        forecasts = [ForecastPoint(k=k, forecast=Figure.of(forecast(rows, k))) for k in steps]
        tests = [
            ForecastPoint(k=row.k, forecast=Figure.of(row.forecast), measured=Figure.of(row.observed))
            for row in (back_test(rows, small, tested) if tested else ())
        ]
    except NotConverged:
        return [], [], None
    return forecasts, tests, small if tests else None


def _overlap(point: ForecastPoint) -> bool:
    measured, predicted = point.measured, point.forecast
    return measured is None or (measured.low <= predicted.high and predicted.low <= measured.high)


def _describe_correction(detector: Detector | None) -> str:
    if detector is None:
        return (
            "Not corrected. If the criterion is wrong about some samples, these rates are wrong too; hit@k for a large "
            "k most of all, since many samples give many chances of a false alarm."
        )
    measured = [f"{n} {what}" for n, what in ((detector.positives, "hits"), (detector.negatives, "others")) if n]
    origin = f"measured on {' and '.join(measured)}" if measured else "taken as known"
    return (
        f"Corrected for a sensitivity of {detector.sensitivity:g} and a specificity of {detector.specificity:g}, "
        f"{origin} (Rogan and Gladen). For k > 1 each prompt is corrected, with these rates taken as known."
    )


def _compare_with_labels(flags: Flags, labels: Flags) -> Agreement:
    """Compare a criterion with what humans say."""
    both, hits, labelled = int((flags & labels).sum()), int(flags.sum()), int(labels.sum())
    others, rejected = len(flags) - labelled, int((~flags & ~labels).sum())
    unknown = Figure(value=math.nan, low=math.nan, high=math.nan)
    return Agreement(
        true_positives=both,
        false_positives=hits - both,
        true_negatives=rejected,
        false_negatives=labelled - both,
        sensitivity=Figure.of(wilson(both, labelled)) if labelled else unknown,
        specificity=Figure.of(wilson(rejected, others)) if others else unknown,
    )


def _measure_tags(table: SampleTable, rates: Floats, rows: Sequence[Flags]) -> list[TagRow]:
    """Measure hits by the tags of prompts. A tag whose values differ within a prompt is left out."""
    found = []
    for tag in dict.fromkeys(name for tags in table.tags for name in tags):
        values = np.array([tags.get(tag, "(none)") for tags in table.tags])
        firsts = values[table.starts]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for prompt, value in enumerate(firsts.tolist()):
            groups[value].append(prompt)
        if 1 < len(groups) <= TAG_VALUES and np.array_equal(values, np.repeat(firsts, table.counts)):
            found += [
                TagRow(
                    tag=tag,
                    value=value,
                    prompts=len(prompts),
                    samples=sum(rows[i].size for i in prompts),
                    first=Figure.of(pooled_rate(rates[prompts, 0])),
                    last=Figure.of(pooled_rate(rates[prompts, -1])),
                )
                for value, prompts in sorted(groups.items(), key=lambda item: -float(rates[item[1], 0].mean()))
            ]
    return found


def _list_prompts(table: SampleTable, hits: Floats, rows: Sequence[Flags]) -> list[PromptRow]:
    """List the prompts with the largest share of hits, those that are sure first."""
    rewards, quantiles = (table.split(table.numbers(name)) for name in ("reward", "quantile"))
    listed = [
        PromptRow(
            prompt_id=table.prompt_ids[i],
            prompt=table.prompt_texts[i],
            hits=int(hits[i]),
            samples=rows[i].size,
            rate=Figure.of(wilson(int(hits[i]), rows[i].size)),
            worst_reward=float(rewards[i].min()),
            worst_quantile=float(quantiles[i].min()),
        )
        for i in np.argsort(-hits / table.counts, kind="stable")[: 2 * SHOWN_PROMPTS]
        if hits[i]
    ]
    return sorted(listed, key=lambda row: -row.rate.low)[:SHOWN_PROMPTS]


def _select_samples(table: SampleTable, flags: Mapping[str, Flags]) -> list[Shown]:
    """Select the samples that the page shows: the worst one of each of the prompts whose worst is worst."""
    rewards = table.numbers("reward")
    worst = [start + int(row.argmin()) for start, row in zip(table.starts, table.split(rewards), strict=True)]
    shown = []
    for number in sorted(worst, key=lambda i: rewards[i])[:SHOWN_SAMPLES]:
        row = table.row(int(number))
        shown.append(
            Shown(
                sample=f"{row['prompt_id']}-{row['index']}",
                prompt=row["prompt"],
                augmented=row["augmented"],
                text=row["text"],
                reward=row["reward"],
                quantile=Figure(value=row["quantile"], low=row["quantile_low"], high=row["quantile_high"]),
                hits=[name for name, flag in flags.items() if flag[number]],
            )
        )
    return shown
