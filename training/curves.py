"""Draws the metrics of a stage over its steps, with one panel per metric."""

import json
import math
from pathlib import Path

from infalign.plots import COLOURS, panels, save

PANELS = {
    "loss": "loss",
    "accuracy": "share of comparisons decided rightly",
    "reward_raw": "reward",
    "quantile": "quantile of the reward",
    "sequence_kl": "KL from the reference (nats, running mean)",
    "beta": "β",
    "r2": "log-ratio explained (R²)",
}
"""Metrics that are drawn, with the titles of their panels."""
PICTURE = "curves.svg"


def draw_curves(metrics: Path) -> Path | None:
    """Draw the metrics of a ``metrics.jsonl`` into ``curves.svg`` beside it.

    Args:
        metrics: A file with a JSON object per line: the step and its metrics.

    Returns:
        The path of the picture, or None if no metric was logged at least twice.
    """
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    series = {
        name: points
        for name in PANELS
        if len(points := [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]) > 1
    }
    if "quantile" in series:
        series.pop("loss", None)  # on-policy it is zero but for rounding
    if not series:
        return None
    figure, axes = panels([PANELS[name] for name in series], height=2.6)
    for axis, points in zip(axes, series.values(), strict=True):
        axis.plot(*zip(*points, strict=True), color=COLOURS[0], linewidth=1.2)
        axis.set_xlabel("step")
    picture = metrics.with_name(PICTURE)
    save(figure, picture, {name: [list(point) for point in points] for name, points in series.items()})
    return picture
