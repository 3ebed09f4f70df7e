"""The page of a report: one HTML file that loads nothing."""

from pathlib import Path

from infalign.errors import truncate
from workbench.report.analysis import choose_steps
from workbench.report.charts import draw_hits, draw_worst
from workbench.report.figures import Figure, Report

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def render_page(report: Report) -> str:
    """Write a report as one HTML page, for light and dark, screen and paper.

    Args:
        report: The figures.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _write_percent, "cut": truncate, "thousands": "{:,}".format}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        steps=choose_steps(report.least),
        charts={"worst": draw_worst(report), "hits": [draw_hits(hits) for hits in report.hits]},
    )


def _write_percent(figure: Figure) -> str:
    return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}]"
