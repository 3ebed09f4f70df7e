"""Writes an evaluation as a table, as JSON and as a picture.

The picture shows measured win rates as dots, and the win rates of the theoretical optimum over KL as lines.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from infalign.errors import InvalidValue
from infalign.estimators import Estimate
from infalign.frontier import Point, point
from infalign.parsing import parse_mixture
from infalign.plots import frontier_figure, save
from infalign.templates import Message
from training.evaluation.figures import Evaluation
from training.figures import flatten_estimates

FIGURES, SELECTION, TEXT, PROMPTS, VALIDATION, PICTURE = (
    "figures.json",
    "measured.json",
    "figures.md",
    "prompts.jsonl",
    "validation.jsonl",
    "win_rate.svg",
)
"""Files of a report."""
COLUMNS = ("decoded by", "win rate", "theory", "judged win rate", "judge: policy", "judge: reference")
"""Headings of the table."""
STEPS, LEAST_KL, MOST_KL = 16, 0.05, 4.0
"""Points of a line in the picture, and the least and the most KL that it reaches, in nats."""


def as_table(evaluation: Evaluation) -> str:
    """Format the figures as a Markdown table with a row per procedure."""
    rows = [
        (row.procedure, row.win_rate, f"{row.theory:.3f}", row.judged_win_rate, row.judge_policy, row.judge_reference)
        for row in evaluation.decoded
    ]
    columns = [column for column in range(len(COLUMNS)) if any(row[column] is not None for row in rows)]
    lines = [[COLUMNS[column] for column in columns], ["---"] * len(columns)]
    lines += [[str(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_text(evaluation: Evaluation) -> str:
    """Format the table, what was evaluated, and what the judge says about selecting harder."""
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
    """Format all figures as JSON. A number that is not known (NaN) becomes null."""
    values = asdict(evaluation)
    if evaluation.overselection:
        values["overselection"]["harmful"] = evaluation.overselection.harmful
    return json.dumps(_replace_nan(values), indent=1, allow_nan=False) + "\n"


def select_figures(evaluation: Evaluation) -> dict[str, float]:
    """Select the few figures that the manifest of a bundle holds.

    Args:
        evaluation: The evaluation.

    Returns:
        Values by their keys. Values that are not known are left out.
    """
    figures = flatten_estimates({"kl": evaluation.kl})
    selected = _name_procedures(evaluation)
    for row in evaluation.decoded:
        if row.procedure in selected:
            estimates: dict[str, Estimate | None] = {
                "win_rate": row.win_rate,
                "judged_win_rate": row.judged_win_rate,
                "judge_policy": row.judge_policy,
                "judge_reference": row.judge_reference,
            }
            figures |= {f"{name}_{row.procedure}": value.value for name, value in estimates.items() if value}
    return {name: value for name, value in figures.items() if value == value}


def draw_picture(evaluation: Evaluation, anchors: int, procedures: Sequence[str]) -> Figure:
    """Draw win rate over KL for each procedure, with the identity for comparison.

    The identity is the best transformation for a policy that is decoded by one draw.

    Args:
        evaluation: The evaluation.
        anchors: K, rewards per prompt in the calibration.
        procedures: Names of procedures, each of which gets a panel.
    """
    trained_for = parse_mixture(evaluation.procedure)
    furthest = min(MOST_KL, max(LEAST_KL, 1.5 * evaluation.kl.value))
    curves: list[Point] = []
    for text in procedures:
        procedure = parse_mixture(text)
        for transformation in dict.fromkeys((evaluation.transformation, "identity")):
            for step in range(1, STEPS + 1):
                kl = furthest * step / STEPS
                try:
                    curves.append(
                        point(transformation, procedure, kl=kl, anchors=anchors, training_procedure=trained_for)
                    )
                except InvalidValue:  # so few anchors reach no further
                    break
    dots = [
        Point(
            evaluation.transformation,
            text,
            evaluation.kl.value,
            evaluation.under(text).win_rate.value,
            0.0,
            aligned_for=str(trained_for) if evaluation.transformation == "optimal" else None,
        )
        for text in procedures
    ]
    return frontier_figure(curves, dots)


def _name_procedures(evaluation: Evaluation) -> list[str]:
    """Name standard decoding, the procedures that the policy was trained for, and their mixture, each once."""
    trained_for = parse_mixture(evaluation.procedure)
    return list(dict.fromkeys(map(str, ("standard", *trained_for.procedures, trained_for))))


def write_report(directory: Path, evaluation: Evaluation, prompts: Sequence[Sequence[Message]], anchors: int) -> None:
    """Write the report of an evaluation. A bundle holds it as ``evaluation/``.

    Args:
        directory: Directory that is written to.
        evaluation: The evaluation.
        prompts: Prompts of the evaluation.
        anchors: K, rewards per prompt in the calibration.
    """
    (directory / FIGURES).write_text(as_json(evaluation), encoding="utf-8")
    (directory / SELECTION).write_text(json.dumps(select_figures(evaluation), indent=1) + "\n", encoding="utf-8")
    (directory / TEXT).write_text(as_text(evaluation), encoding="utf-8")
    write_prompts(directory, prompts)
    figure = draw_picture(evaluation, anchors, _name_procedures(evaluation))
    save(figure, directory / PICTURE, select_figures(evaluation))


def write_prompts(directory: Path, prompts: Sequence[Sequence[Message]], name: str = PROMPTS) -> None:
    """Write the prompts of an evaluation, from which ``infalign evaluate`` can measure the policy again.

    Args:
        directory: Directory that is written to.
        prompts: Conversations.
        name: Name of the file.
    """
    with (directory / name).open("w", encoding="utf-8") as file:
        for messages in prompts:
            file.write(json.dumps({"prompt": messages}, ensure_ascii=False) + "\n")


def _replace_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return None if value != value else value
