"""The commands ``infalign frontier`` and ``infalign join``."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
import numpy as np

from infalign.errors import InvalidValue
from infalign.frontier import Point, point
from infalign.mixture import Mixture
from infalign.parsing import check_transformation, parse_mixture

T = TypeVar("T")
TRANSFORMATIONS = ("gaussian", "identity", "log", "exp(5)", "exp(10)", "exp(-5)", "exp(-10)", "optimal")
PLOTTED_KLS = 40


def _procedure(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[Mixture, ...]:
    return tuple(_parse(parse_mixture, text) for text in texts)


def _transformation(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_parse(check_transformation, text) for text in texts)


def _parse(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except InvalidValue as error:
        raise click.BadParameter(str(error)) from error


@click.command(short_help="Win rate against KL, in theory.")
@click.option(
    "-t",
    "--transformation",
    "transformations",
    multiple=True,
    default=TRANSFORMATIONS,
    callback=_transformation,
    help="identity, log, exp(T), optimal, or gaussian (an uncalibrated reward); again for more.  [default: all]",
)
@click.option(
    "-p",
    "--procedure",
    "procedures",
    multiple=True,
    default=("best-of-4",),
    show_default=True,
    callback=_procedure,
    help="standard, best-of-N, worst-of-N or best-of-poisson(MU); or a mixture such as 2*best-of-4+worst-of-4, which "
    "shows its procedures as well; again for more.",
)
@click.option(
    "--kl",
    "kls",
    multiple=True,
    type=click.FloatRange(0, 10, min_open=True),
    help="Nats from the reference; again for more.  [default: 0.5]",
)
@click.option(
    "--beta", "betas", multiple=True, type=click.FloatRange(0, min_open=True), help="The KL penalty, instead of --kl."
)
@click.option(
    "--anchors",
    type=click.IntRange(1, 100_000),
    help="Estimate quantiles from so many reference rewards per prompt.  [default: exact]",
)
@click.option("--json", "as_json", is_flag=True, help="One object for one point, else a list.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw win rate against KL: .png or .svg, with the numbers in a .json beside it.",
)
def frontier(
    transformations: tuple[str, ...],
    procedures: tuple[Mixture, ...],
    kls: tuple[float, ...],
    betas: tuple[float, ...],
    anchors: int | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Win rate, KL and β of the policies that transformations make, policy and reference decoded alike.

    In quantile space, for continuous rewards: no model is needed. Compare transformations at equal KL, β means
    something else for each.

    For a mixture, the policy of `optimal` maximises the weighted mean of the win rates. It is shown by this mean, and
    under each procedure of the mixture beside the optimum of that procedure at the same KL.
    """
    if kls and betas:
        raise click.UsageError("--kl and --beta: accepted: one of the two")
    if plot is not None:
        from infalign.plots import check_path, frontier_figure, save  # matplotlib takes a while to import

        check_path(plot)
    goals: list[tuple[float | None, float | None]] = [(None, beta) for beta in betas]
    goals = goals or [(kl, None) for kl in kls or (0.5,)]
    lines = [_lines(mixture, transformations) for mixture in procedures]
    points = [line.point(kl, beta, anchors) for group in lines for kl, beta in goals for line in group]
    if plot is not None:
        widest = max([2.0, *(p.kl for p in points)])
        curves = [dot for group in lines for line in group for dot in line.curve(anchors, widest)]
        dots = points if kls or betas else []
        numbers = save(frontier_figure(curves, dots), plot, {"curves": [_row(p) for p in curves]})
        click.echo(f"{plot}, {numbers}", err=True)
    click.echo(_json(points) if as_json else _text(points))


class _Line(NamedTuple):
    """The policies of a transformation, under what decodes them."""

    transformation: str
    procedure: Mixture
    aligned_for: Mixture
    """What ``optimal`` is the optimum for."""

    def point(self, kl: float | None, beta: float | None, anchors: int | None) -> Point:
        """Compute a point of the line."""
        return point(
            self.transformation,
            self.procedure,
            kl=kl,
            beta=beta,
            anchors=anchors,
            training_procedure=self.aligned_for,
        )

    def curve(self, anchors: int | None, widest: float) -> list[Point]:
        """Compute the line from KL 0, where every policy is the reference, to ``widest`` nats or where anchors end."""
        line: list[Point] = []
        for kl in np.linspace(0, 1, PLOTTED_KLS + 1)[1:] ** 2 * widest:
            try:
                line.append(self.point(float(kl), None, anchors))
            except InvalidValue:
                break
        aligned_for = line[0].aligned_for if line else None
        start = Point(self.transformation, str(self.procedure), 0.0, 0.5, math.inf, anchors, aligned_for=aligned_for)
        return [start, *line]


def _lines(mixture: Mixture, transformations: tuple[str, ...]) -> list[_Line]:
    """List the lines of a mixture: first under itself, then under each of its procedures if there are several."""
    lines = [_Line(transformation, mixture, mixture) for transformation in transformations]
    if len(mixture.procedures) > 1:
        for procedure in map(Mixture.of, mixture.procedures):
            for transformation in transformations:
                lines.append(_Line(transformation, procedure, mixture))
                if transformation == "optimal":
                    lines.append(_Line(transformation, procedure, procedure))
    return lines


def _row(point: Point) -> dict[str, float | str | None]:
    return {**asdict(point), "beta": point.beta if math.isfinite(point.beta) else None}


def _json(points: list[Point]) -> str:
    rows = [_row(p) for p in points]
    return json.dumps(rows[0] if len(rows) == 1 else rows, indent=1)


def _text(points: list[Point]) -> str:
    has_errors = any(p.win_rate_error for p in points)
    if len(points) == 1:
        names = ["win_rate", "beta", "kl", *(["win_rate_error"] if has_errors else [])]
        return "\n".join(f"{name:<15}{getattr(points[0], name):.6g}" for name in names)
    wide = max(20, *(len(p.procedure) + 2 for p in points))
    head = f"{'procedure':<{wide}}{'transformation':<16}{'kl':>8}{'win_rate':>10}{'beta':>12}"
    rows = [
        f"{p.procedure:<{wide}}{p.transformation:<16}{p.kl:>8.4g}{p.win_rate:>10.6f}{p.beta:>12.4g}" for p in points
    ]
    if has_errors:
        head += f"{'win_rate_error':>16}"
        rows = [f"{row}{p.win_rate_error:>16.6f}" for row, p in zip(rows, points, strict=True)]
    if any(p.aligned_for not in (None, p.procedure) for p in points):
        head += "  aligned_for"
        rows = [f"{row}  {p.aligned_for or ''}".rstrip() for row, p in zip(rows, points, strict=True)]
    return "\n".join([head, *rows])


@click.command(short_help="Put the adapters of several bundles into one.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE BUNDLE...")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Bundle directory.")
def join(bundles: tuple[Path, ...], output: Path) -> None:
    """Write one bundle with every adapter of the BUNDLEs, each still aligned for its own procedure.

    They must have been trained on one reference, with one reward model and one calibration. The first one's
    policy answers requests that name none.
    """
    from infalign.bundle import read_bundle
    from infalign.bundling import join_bundles

    if len(bundles) < 2:
        raise click.UsageError("BUNDLE: accepted: two or more")
    bundle = join_bundles([read_bundle(path) for path in bundles], output)
    click.echo("\n".join(f"{name}  {policy.record.procedure}" for name, policy in bundle.policies.items()), err=True)
    click.echo(str(bundle.path))
