"""The method on a real pool of scored candidates.

    python experiments/pool.py POOL.jsonl.gz --output docs/results/pool.md --source "Whose answers, scored by whom."

Half of each prompt's candidates calibrate, and the other half tests. A line of POOL is a JSON object with as many
responses as all others: ``{"prompt": ..., "responses": [{"score": ...}, ...]}``. Writes a Markdown report and a figure.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.stats import rankdata

from infalign import (
    BestOfN,
    CalibrationTable,
    Cost,
    Estimate,
    Fixed,
    Goodness,
    InvalidValue,
    StoppingRule,
    Target,
    WorstOfN,
    estimators,
    over_prompts,
)
from infalign.arrays import Floats
from infalign.plots import COLOURS, panels, save

COUNTS = (1, 2, 4, 8, 16)
RESAMPLES, ORDERS, RESOLUTION = 4000, 40, 1e-6


@dataclass(frozen=True)
class Pool:
    """Scores of P prompts in random order, of shape (P, 2H). The first H calibrate, the others are decoded."""

    scores: Floats

    @property
    def half(self) -> int:
        """H, the number of candidates that calibrate."""
        return self.scores.shape[1] // 2

    @property
    def held_out(self) -> Floats:
        """Scores that are decoded, of shape (P, H)."""
        return self.scores[:, self.half :]

    @property
    def table(self) -> CalibrationTable:
        """Calibration table of the first H scores."""
        keys = tuple(map(str, range(len(self.scores))))
        return CalibrationTable(keys, self.scores[:, : self.half], resolution=RESOLUTION)

    def shuffle(self, rng: np.random.Generator) -> "Pool":
        """Return the pool with the candidates of each prompt in another random order."""
        return Pool(rng.permuted(self.scores, axis=1))


def read_pool(path: Path) -> Pool:
    """Read the scores of a pool file.

    Raises:
        InvalidValue: Rows are not as described, or have different lengths.
    """
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [[float(response["score"]) for response in json.loads(line)["responses"]] for line in text.splitlines()]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise InvalidValue("POOL", str(path), f"JSON lines with responses that have scores ({error!r})") from error
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or min(lengths) < 4:
        raise InvalidValue("POOL", f"rows of {sorted(lengths)} responses", "rows of equally many, at least 4")
    scores = np.array(rows)
    if not np.isfinite(scores).all():
        raise InvalidValue("POOL", "a score that is NaN or infinite", "finite scores")
    return Pool(scores[:, : scores.shape[1] - scores.shape[1] % 2])


def measure_curves(pool: Pool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Measure best-of-n and worst-of-n on the held-out half: estimate with interval, brute force, and theory."""
    table = pool.table
    quantiles = table.quantile(table.keys, pool.held_out)
    any_prompt = table.lookup(table.keys[0])
    rows = []
    for n in [n for n in COUNTS if n <= pool.half]:
        picks = rng.permuted(np.tile(np.arange(pool.half), (RESAMPLES, 1)), axis=1)[:, :n]
        for procedure, pick in ((BestOfN(n), np.max), (WorstOfN(n), np.min)):
            brute = [float(pick(row[picks], axis=1).mean()) for row in quantiles]
            rows.append(
                {
                    "procedure": str(procedure),
                    "quantile": over_prompts(estimators.expected_value(quantiles, procedure)),
                    "brute": float(np.mean(brute)),
                    "theory": any_prompt.expected_quantile(procedure),
                    "score": over_prompts(estimators.expected_value(pool.held_out, procedure)),
                }
            )
    return rows


def make_rules(cap: int) -> list[StoppingRule]:
    """Make the stopping rules that are compared, with at most ``cap`` draws each."""
    best = BestOfN(cap)
    targets = [Target(best, q, bound) for bound in ("point", "credible") for q in (0.8, 0.9)]
    fixed = [Fixed(BestOfN(n)) for n in COUNTS if n <= cap]
    return [*fixed, *targets, *(Cost(best, cost) for cost in (0.02, 0.01, 0.005, 0.002))]


def describe_rule(rule: StoppingRule) -> str:
    """Describe a stopping rule in a few words."""
    match rule:
        case Fixed():
            return f"always {rule.procedure.n}"
        case Target():
            return f"quantile {rule.quantile:g} ({rule.bound})"
        case Cost():
            return f"cost {rule.cost:g} per draw"
    raise TypeError(rule)


def measure_stopping(pool: Pool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Measure the draws that each rule uses and the quantile that it reaches, over many random orders of the pool.

    The quantile is the rank of the selected candidate in the prompt's whole pool, which the rule does not see, over the
    pool's size + 1. By this measure, n random draws are expected to reach n/(n + 1).
    """
    totals = {rule: (np.zeros(len(pool.scores)), np.zeros(len(pool.scores))) for rule in make_rules(pool.half)}
    for _ in range(ORDERS):
        order = pool.shuffle(rng)
        true = rankdata(order.scores, axis=1)[:, pool.half :] / (pool.scores.shape[1] + 1)
        table = order.table
        for row, key in enumerate(table.keys):
            calibration = table.lookup(key)
            draws = order.held_out[row]
            ranks = calibration.rank(draws)
            for rule, (draw_counts, rank_sums) in totals.items():
                n = min(rule.procedure.n, pool.half)
                passing = np.flatnonzero(ranks[:n] >= rule.rank_threshold(table.samples))
                count = int(passing[0]) + 1 if passing.size else n
                draw_counts[row] += count / ORDERS
                rank_sums[row] += true[row, np.argmax(draws[:count])] / ORDERS
    return [
        {
            "rule": describe_rule(rule),
            "draws": over_prompts(draw_counts),
            "quantile": over_prompts(rank_sums),
            "predicted": rule.expectation(pool.half),
            "exact": rule.expectation(),
        }
        for rule, (draw_counts, rank_sums) in totals.items()
    ]


def draw_figure(
    pool: Pool, curve_figures: list[dict[str, Any]], stop_figures: list[dict[str, Any]], good: Goodness, path: Path
) -> None:
    """Draw the histogram of quantiles, the curves over n and the stopping rules, and save the picture."""
    figure, axes = panels(["held-out quantiles", "best and worst of n", "stopping rules"])
    edges = np.linspace(0, 1, good.histogram.size + 1)
    axes[0].stairs(good.histogram * good.histogram.size, edges, fill=True, color=COLOURS[5], alpha=0.7)
    axes[0].axhline(1, color="black", linestyle="--", linewidth=1)
    axes[0].set_ylim(0, 1.6)
    axes[0].set_xlabel(f"quantile among {good.samples} calibration candidates")
    axes[0].set_ylabel("density")
    for family, colour in (("best", COLOURS[0]), ("worst", COLOURS[3])):
        rows = [row for row in curve_figures if row["procedure"].startswith(family)]
        n = [int(row["procedure"].rsplit("-", 1)[1]) for row in rows]
        low, high = ([getattr(row["quantile"], end) for row in rows] for end in ("low", "high"))
        axes[1].fill_between(n, low, high, color=colour, alpha=0.3, linewidth=0)
        axes[1].plot(n, [row["quantile"].value for row in rows], color=colour, label=f"{family} of n")
        axes[1].plot(n, [row["brute"] for row in rows], "o", color=colour, markersize=4)
        axes[1].plot(n, [row["theory"] for row in rows], "--", color="black", linewidth=1)
    axes[1].plot([], [], "o", color="grey", label="brute force")
    axes[1].plot([], [], "--", color="black", label="theory")
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(n, map(str, n))
    axes[1].set_xlabel("n")
    axes[1].set_ylabel("expected quantile")
    axes[1].legend(fontsize=8, frameon=False)
    groups = {"always": "fixed n", "quantile": "target quantile", "cost": "cost per draw"}
    for (start, label), colour, marker in zip(groups.items(), ("black", *COLOURS[:2]), "o^s", strict=True):
        rows = [row for row in stop_figures if row["rule"].startswith(start)]
        x, y = ([row[axis].value for row in rows] for axis in ("draws", "quantile"))
        axes[2].plot(x, y, marker + ("-" if start == "always" else ""), color=colour, label=label, markersize=5)
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(COUNTS, map(str, COUNTS))
    axes[2].set_xlabel("draws used")
    axes[2].set_ylabel("quantile reached")
    axes[2].legend(fontsize=8, frameon=False, loc="lower right")
    save(
        figure,
        path,
        {
            "selected": _round_numbers(curve_figures),
            "stopped": _round_numbers(stop_figures),
            "histogram": good.histogram.tolist(),
        },
    )


def _round_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return [round(number, 5) for number in (value.value, value.low, value.high)]
        return [round(number, 5) for number in value] if isinstance(value, tuple) else value

    return [{name: plain(value) for name, value in row.items()} for row in rows]


def write_report(
    pool: Pool,
    good: Goodness,
    curve_figures: list[dict[str, Any]],
    stop_figures: list[dict[str, Any]],
    jitter: Floats,
    words: dict[str, str],
) -> str:
    """Write the text of the report, in Markdown."""
    prompts, width = pool.scores.shape
    curve_rows = [
        f"| {row['procedure']} | {row['quantile']} | {row['brute']:.3f} | {row['theory']:.3f} | {row['score']} |"
        for row in curve_figures
    ]
    stop_rows = [
        f"| {row['rule']} | {row['draws'].value:.2f} | {row['predicted'].draws:.2f} | {row['quantile']} "
        f"| {row['predicted'].quantile:.3f} | {_format_saving(row)} |"
        for row in stop_figures
    ]
    continuous = Pool(rankdata(pool.scores + RESOLUTION * jitter, axis=1))
    tie_figures = [
        f"{over_prompts(estimators.expected_value(quantiles, WorstOfN(n)))} for worst-of-{n}"
        for quantiles in [continuous.table.quantile(continuous.table.keys, continuous.held_out)]
        for n in COUNTS[2:]
        if n <= pool.half
    ]
    small = [pool.table.lookup(key).compress(9).error for key in pool.table.keys]
    template = Path(__file__).with_name("pool_report.md").read_text(encoding="utf-8")
    return template.format(
        prompts=prompts,
        width=width,
        half=pool.half,
        good=good,
        shrinkage=0.5 / (pool.half + 1),
        broken=", ".join(tie_figures),
        compressed=float(np.mean(small)),
        resamples=RESAMPLES,
        orders=ORDERS,
        curve_rows="\n".join(curve_rows),
        stop_rows="\n".join(stop_rows),
        **words,
    )


def _format_saving(row: dict[str, Any]) -> str:
    """Format the share of draws saved against a fixed n that reaches the same quantile q, which takes q/(1 − q)."""
    if row["rule"].startswith("always"):
        return ""
    quantile = row["quantile"].value
    return f"{1 - row['draws'].value * (1 - quantile) / quantile:.0%}"


@click.command()
@click.argument("pool", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The report, Markdown.")
@click.option("--source", default="of unknown origin.", help="A sentence on where the candidates and scores come from.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(pool: Path, output: Path, source: str, seed: int) -> None:
    """Report on POOL."""
    rng = np.random.default_rng(seed)
    try:
        scores = read_pool(pool).shuffle(rng)
    except InvalidValue as error:
        raise click.ClickException(str(error)) from error
    table = scores.table
    good = Goodness.of(table, table.keys, list(scores.held_out), seed=seed)
    curve_figures, stop_figures = measure_curves(scores, rng), measure_stopping(scores, rng)
    plot = output.parent / "figures" / f"{output.stem}.svg"
    plot.parent.mkdir(parents=True, exist_ok=True)
    draw_figure(scores, curve_figures, stop_figures, good, plot)
    jitter = rng.uniform(-0.1, 0.1, scores.scores.shape)  # breaks ties and nothing else
    plot_path = plot.relative_to(output.parent).as_posix()
    text = write_report(
        scores, good, curve_figures, stop_figures, jitter, {"plot": plot_path, "pool": pool.name, "source": source}
    )
    output.write_text(text, encoding="utf-8")
    click.echo(f"{output}, {plot}, {plot.with_suffix('.json')}")


if __name__ == "__main__":
    main()
