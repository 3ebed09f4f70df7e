"""Charts of a report, as SVG that takes the colours of the page around it."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from infalign.plots import COLOURS, panels
from workbench.report.figures import Figure, Hits, Report

INK = "#010203"
"""Colour of text and axes in the drawing. It becomes the page's text colour, so that a chart is legible in the dark."""
BAND = 0.18
"""Opacity of intervals."""


def draw_worst(report: Report) -> str:
    """Draw the worst of n samples against n: reward, and quantile beside theory."""
    ns = [point.n for point in report.worst]
    with _style():
        figure, axes = panels(["reward of the worst of n", "quantile of the worst of n"])
        _draw(axes[0], ns, [point.reward for point in report.worst], COLOURS[0], "measured")
        _draw(axes[1], ns, [point.quantile for point in report.worst], COLOURS[0], "measured")
        axes[1].plot(
            ns, [point.theory for point in report.worst], "--", color=INK, linewidth=1, label="reference, in theory"
        )
        axes[1].set_ylim(bottom=0)
        axes[1].legend(fontsize=8, frameon=False)
        return _finish(figure, axes, "samples n")


def draw_hits(hits: Hits) -> str:
    """Draw hit@k against k, with the forecast beyond the samples, and the back-test of forecasts."""
    ks = [point.k for point in hits.curve]
    with _style():
        figure, axes = panels(["hit@k", "forecast, tested on these samples"] if hits.back_test else ["hit@k"])
        _draw(axes[0], ks, [point.rate for point in hits.curve], COLOURS[0], "measured")
        corrected = [point for point in hits.curve if point.corrected is not None]
        if corrected:
            figures = [point.corrected for point in corrected if point.corrected is not None]
            _draw(axes[0], [point.k for point in corrected], figures, COLOURS[2], "corrected")
        if hits.forecast:
            further = [point.k for point in hits.forecast]
            _draw(axes[0], further, [point.forecast for point in hits.forecast], COLOURS[3], "forecast", "--")
        axes[0].legend(fontsize=8, frameon=False)
        if hits.back_test:
            tested = [point.k for point in hits.back_test]
            _draw(axes[1], tested, [point.forecast for point in hits.back_test], COLOURS[3], "forecast", "--")
            measured = [point.measured for point in hits.back_test if point.measured is not None]
            _draw(axes[1], tested, measured, COLOURS[0], "measured")
            axes[1].legend(fontsize=8, frameon=False)
        for axis in axes:
            axis.set_ylim(0, 1)
        return _finish(figure, axes, "samples k")


def _draw(
    axis: Axes, places: Sequence[int], figures: Sequence[Figure], colour: str, label: str, line: str = "-"
) -> None:
    marker = "o" if len(places) < 20 else ""
    axis.plot(places, [f.value for f in figures], line, marker=marker, markersize=3, color=colour, label=label)
    axis.fill_between(
        places, [f.low for f in figures], [f.high for f in figures], color=colour, alpha=BAND, linewidth=0
    )


def _style() -> Any:
    return matplotlib.rc_context(
        {
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": "#999999",
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "infalign",
        }
    )


def _finish(figure: Any, axes: Sequence[Axes], label: str) -> str:
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xlabel(label)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'width="[0-9.]+pt" height="[0-9.]+pt"', 'role="img"', svg, count=1)
