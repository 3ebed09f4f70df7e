"""Compares two campaigns on the same prompts, such as of two checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infalign.arrays import Floats
from infalign.curves import curve_over_prompts, expected_curve
from infalign.errors import InvalidValue
from infalign.hits import hit_curve, paired_difference
from infalign.procedures import WorstOfN
from workbench.criteria import Criterion
from workbench.report.analysis import choose_steps
from workbench.report.figures import Comparison, Difference, Figure
from workbench.report.table import SampleTable
from workbench.store import read_settings


def compare(
    directory: Path, table: SampleTable, other_directory: Path, other: SampleTable, criteria: Sequence[Criterion]
) -> Comparison:
    """Compare two campaigns, prompt by prompt.

    Args:
        directory: Folder of the campaign that is reported.
        table: Its samples.
        other_directory: Folder of the other campaign.
        other: Its samples.
        criteria: What hits are; only those that need nothing but the samples.

    Raises:
        InvalidValue: They have no prompt in common.
    """
    mine, theirs = ({name: i for i, name in enumerate(t.prompt_ids)} for t in (table, other))
    common = [name for name in mine if name in theirs]
    if len(common) < 2:
        raise InvalidValue("--compare", str(other_directory), "a campaign with at least two of the same prompts")
    pairs = [(table, [mine[name] for name in common]), (other, [theirs[name] for name in common])]
    ns = choose_steps(min(int(t.counts[rows].min()) for t, rows in pairs))
    worst = {name: [_worst(t, rows, name, ns) for t, rows in pairs] for name in ("reward", "quantile")}
    hits = {str(criterion): [_hits(t, rows, criterion, ns) for t, rows in pairs] for criterion in criteria}
    changes = {name: curve_over_prompts(after - before) for name, (before, after) in worst.items()}
    settings, others = read_settings(directory), read_settings(other_directory)
    return Comparison(
        other=other_directory.name,
        settings=others,
        prompts=len(common),
        only_one=table.prompts + other.prompts - 2 * len(common),
        differences=[
            Difference(
                n=n,
                reward=Figure.of(changes["reward"][i]),
                quantile=Figure.of(changes["quantile"][i]),
                hits={
                    name: Figure.of(paired_difference(after[:, i], before[:, i]))
                    for name, (before, after) in hits.items()
                },
            )
            for i, n in enumerate(ns)
        ],
        notes=_list_notes(settings, others),
    )


def _worst(table: SampleTable, prompts: Sequence[int], column: str, ns: Sequence[int]) -> Floats:
    rows = table.split(table.numbers(column))
    return expected_curve([rows[i] for i in prompts], [WorstOfN(n) for n in ns])


def _hits(table: SampleTable, prompts: Sequence[int], criterion: Criterion, ns: Sequence[int]) -> Floats:
    rows = table.split(np.asarray(table.flag(criterion, {})))
    return hit_curve([rows[i] for i in prompts], ns)


def _list_notes(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """List settings in which the campaigns differ, and that have nothing to do with the checkpoint."""
    names = ("seed", "sampling", "calibrate", "augmentation")
    notes = []
    if str(settings["bundle"]).split("-")[-1] != str(others["bundle"]).split("-")[-1]:
        notes.append("The reward models or calibrations differ, so rewards and quantiles cannot be compared.")
    differ = [name for name in names if settings.get(name) != others.get(name)]
    if differ:
        notes.append(f"The campaigns also differ in {', '.join(differ)}.")
    return notes
