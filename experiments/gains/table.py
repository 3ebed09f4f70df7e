"""The main table: all methods at one KL."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.gains.methods import ACCOUNT, CLAIMS, MIXED, PROCEDURES, VERSATILITY
from experiments.gains.policies import Job, Measurement
from experiments.gains.results import Results
from infalign import point
from infalign.frontier import Point
from infalign.plots import frontier_figure, save
from infalign.procedures import BestOfN, Standard, WorstOfN


def write_table(results: Results, settings: str) -> str:
    """Write the text of the results, in Markdown.

    Args:
        results: The figures.
        settings: What was trained and measured, in a paragraph.
    """
    names = [str(procedure) for procedure in PROCEDURES]
    lines = ["# Aligned for how they are decoded", "", settings, ""]
    lines += ["## Win rate over the reference, both decoded alike, by the reward model that selects", ""]
    lines += write_head(["method", "KL", *names])
    for method in results.methods:
        lines.append(write_row([method.name, results.kl(method), *(results.wins(method, p) for p in PROCEDURES)]))
    lines += ["", "## The same selections by the judge", "", *write_head(["method", *names])]
    for method in results.methods:
        lines.append(write_row([method.name, *(results.wins(method, p, "judged") for p in PROCEDURES)]))
    lines += ["", "## What was claimed", ""]
    lines += write_head(["better", "than", "under", "gain", "theory's room", "share of it", "gain by the judge"])
    for better, worse, procedure in CLAIMS:
        if {better, worse} <= set(results.methods):
            gain, judged = (results.gain(better, worse, procedure, what) for what in ("wins", "judged"))
            room = results.room(better, worse, procedure)
            share = f"{gain.value / room:.0%}" if room > 0.01 else "–"
            lines.append(write_row([better.name, worse.name, procedure, gain, f"{room:.3f}", share, judged]))
    if MIXED in results.methods:
        lines += ["", f"## One policy for {MIXED.procedure}", ""]
        lines += write_head(["under", "the mixture", "the method for it alone", "cost", "in theory", "by the judge"])
        for method, procedure in VERSATILITY:
            lines.append(
                write_row(
                    [
                        procedure,
                        results.wins(MIXED, procedure),
                        f"{results.wins(method, procedure)} ({method.name})",
                        results.gain(method, MIXED, procedure),
                        f"{results.room(method, MIXED, procedure):.3f}",
                        results.gain(method, MIXED, procedure, "judged"),
                    ]
                )
            )
    lines += ["", "## Where the rest of the room goes", ""]
    lines += write_head(
        ["method", "under", "theory at its KL", "KL that shows", "theory at that", "training prompts", "test prompts"]
    )
    for method, procedure in ACCOUNT:
        if method in results.methods:
            shown = results.visible_kl(method)
            theory = [results.theory(method, procedure), results.theory(method, procedure, shown)]
            wins = [results.wins(method, procedure, what) for what in ("train", "wins")]
            lines.append(
                write_row([method.name, procedure, f"{theory[0]:.3f}", f"{shown:.2f}", f"{theory[1]:.3f}", *wins])
            )
    lines += ["", "The *KL that shows* is that of the distribution of quantiles. The rest of the KL moves probability"]
    lines += ["between responses of equal quality."]
    return "\n".join(lines) + "\n"


def write_head(names: list[str]) -> list[str]:
    """Write the head of a table and the line below it, in Markdown."""
    return [write_row(names), "|---" * len(names) + "|"]


def write_row(cells: Sequence[object]) -> str:
    """Write a row of a table, in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"


def describe(job: Job, measurement: Measurement) -> dict[str, object]:
    """Return the figures of one policy, for a JSON file."""
    return {
        "method": job.method.name,
        "seed": job.seed,
        **measurement.solved,
        "test_kl": float(np.mean(measurement.kl)),
        "visible_kl": measurement.visible_kl,
        **{
            what: {name: float(np.mean(values)) for name, values in getattr(measurement, what).items()}
            for what in ("wins", "judged", "train")
        },
    }


def draw_picture(results: Results, output: Path) -> None:
    """Draw the measured win rates below the frontier of K anchors, and save the picture with its numbers."""
    procedures = [Standard(), BestOfN(4), WorstOfN(4)]
    most = max(results.kl(method).value for method in results.methods)
    kls = np.linspace(0.02, 1.3 * most, 25)
    texts = list(dict.fromkeys(m.transformation for m in results.methods))
    curves = [point(text, p, kl=float(kl), anchors=results.anchors) for p in procedures for text in texts for kl in kls]
    dots = [
        Point(m.transformation, str(p), results.kl(m).value, results.wins(m, p).value, 0.0)
        for p in procedures
        for m in results.methods
        if m.transformation != "optimal" or m.procedure == str(p)  # its curve is the optimum for the panel
    ]
    save(frontier_figure(curves, dots), output, {"measured": [asdict(dot) for dot in dots]})
