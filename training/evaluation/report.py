"""An evaluation as a table, as JSON, and as a picture: measured points under the theoretical frontier."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from infalign.errors import InvalidValue
from infalign.estimators import Estimate
from infalign.frontier import Point, point
from infalign.plots import frontier_figure, save
from infalign.procedures import parse_procedure
from infalign.templates import Message
from training.evaluation.figures import Evaluation

FIGURES, MEASURED, TEXT, PROMPTS, PICTURE = (
    "figures.json",
    "measured.json",
    "figures.md",
    "prompts.jsonl",
    "win_rate.svg",
)
COLUMNS = ("decoded by", "win rate", "theory", "judged win rate", "judge: policy", "judge: reference")
STEPS, LEAST_KL, MOST_KL = 16, 0.05, 4.0
"""Of the drawn frontier."""


def as_table(evaluation: Evaluation) -> str:
    """Markdown: one row for each procedure."""
    rows = [
        (row.procedure, row.win_rate, f"{row.theory:.3f}", row.judged_win_rate, row.judge_policy, row.judge_reference)
        for row in evaluation.decoded
    ]
    kept = [column for column in range(len(COLUMNS)) if any(row[column] is not None for row in rows)]
    lines = [[COLUMNS[column] for column in kept], ["---"] * len(kept)]
    lines += [[str(row[column]) for column in kept] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_text(evaluation: Evaluation) -> str:
    """The table with what was evaluated, and what the judge says of selecting harder."""
    e = evaluation
    parts = [
        f"{e.prompts} prompts x {e.draws} draws; `{e.transformation}` for {e.procedure}; KL {e.kl} nats; "
        "95% intervals over prompts",
        as_table(e),
    ]
    if e.overselection:
        scores = ", ".join(f"{n}: {s}" for n, s in zip(e.overselection.ns, e.overselection.scores, strict=True))
        n = e.overselection.harmful
        verdict = f"falls from n = {n} on: the reward is being gamed" if n else "never falls beyond chance"
        parts.append(f"judge's mean score of the policy's best of n, by n: {scores}; it {verdict}")
    return "\n\n".join(parts) + "\n"


def as_json(evaluation: Evaluation) -> str:
    """Every figure, NaN as null."""
    found = asdict(evaluation)
    if evaluation.overselection:
        found["overselection"]["harmful"] = evaluation.overselection.harmful
    return json.dumps(_plain(found), indent=1, allow_nan=False) + "\n"


def measured(evaluation: Evaluation) -> dict[str, float]:
    """The few figures that a bundle carries."""
    figures = {"kl": evaluation.kl.value, "kl_low": evaluation.kl.low, "kl_high": evaluation.kl.high}
    for row in evaluation.decoded:
        if row.procedure in ("standard", evaluation.procedure):
            estimates: dict[str, Estimate | None] = {
                "win_rate": row.win_rate,
                "judged_win_rate": row.judged_win_rate,
                "judge_policy": row.judge_policy,
                "judge_reference": row.judge_reference,
            }
            figures |= {f"{name}_{row.procedure}": value.value for name, value in estimates.items() if value}
    return {name: value for name, value in figures.items() if value == value}


def picture(evaluation: Evaluation, anchors: int, procedures: Sequence[str]) -> Figure:
    """Win rate against KL for each of ``procedures``: the frontier with K anchors as lines, the measured as a dot.

    Identity, the best without knowing of the procedure, is drawn for comparison.
    """
    trained_for = parse_procedure(evaluation.procedure)
    furthest = min(MOST_KL, max(LEAST_KL, 1.5 * evaluation.kl.value))
    curves: list[Point] = []
    for text in procedures:
        procedure = parse_procedure(text)
        for transformation in dict.fromkeys((evaluation.transformation, "identity")):
            for step in range(1, STEPS + 1):
                kl = furthest * step / STEPS
                try:
                    curves.append(point(transformation, procedure, kl=kl, anchors=anchors, aligned_for=trained_for))
                except InvalidValue:  # so few anchors reach no further
                    break
    dots = [
        Point(evaluation.transformation, text, evaluation.kl.value, evaluation.under(text).win_rate.value, 0.0)
        for text in procedures
    ]
    return frontier_figure(curves, dots)


def write(directory: Path, evaluation: Evaluation, prompts: Sequence[Sequence[Message]], anchors: int) -> None:
    """All of it, and the prompts, into ``directory``: the stage, and the bundle's part ``evaluation/``."""
    (directory / FIGURES).write_text(as_json(evaluation), encoding="utf-8")
    (directory / MEASURED).write_text(json.dumps(measured(evaluation), indent=1) + "\n", encoding="utf-8")
    (directory / TEXT).write_text(as_text(evaluation), encoding="utf-8")
    with (directory / PROMPTS).open("w", encoding="utf-8") as file:
        for messages in prompts:
            file.write(json.dumps({"prompt": messages}, ensure_ascii=False) + "\n")
    shown = list(dict.fromkeys(("standard", evaluation.procedure)))
    figure = picture(evaluation, anchors, shown)
    save(figure, directory / PICTURE, measured(evaluation))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value != value else value
