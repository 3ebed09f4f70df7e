"""The method on a real pool of scored candidates: calibrate on half of each prompt's, try everything on the other half.

    python experiments/pool.py POOL.jsonl.gz --output docs/pool.md --source "Whose answers, and who scored them."

POOL has a JSON object per line, ``{"prompt": ..., "responses": [{"score": ...}, ...]}`` with equally many responses
per prompt. Writes a Markdown report, and its figure (.svg, numbers in .json beside it) under figures/ next to it.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
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
from infalign.plots import COLOURS, panels, save

Floats = NDArray[np.float64]
COUNTS = (1, 2, 4, 8, 16)
RESAMPLES, ORDERS = 4000, 40
RESOLUTION = 1e-6


@dataclass(frozen=True)
class Pool:
    """Scores of P prompts, (P, 2H), in a random order: the first H calibrate, the others are decoded."""

    scores: Floats

    @property
    def half(self) -> int:
        return self.scores.shape[1] // 2

    @property
    def held_out(self) -> Floats:
        return self.scores[:, self.half :]

    @property
    def table(self) -> CalibrationTable:
        keys = tuple(map(str, range(len(self.scores))))
        return CalibrationTable(keys, self.scores[:, : self.half], resolution=RESOLUTION)

    def shuffled(self, rng: np.random.Generator) -> "Pool":
        return Pool(rng.permuted(self.scores, axis=1))


def read_pool(path: Path) -> Pool:
    """The scores of a pool file.

    Raises:
        InvalidValue: rows that are not as described, or of different lengths.
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


def curves(pool: Pool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Best-of-n and worst-of-n of the held-out half: estimate with interval, brute force, theory."""
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
                    "quantile": over_prompts(estimators.expected_selected(quantiles, procedure)),
                    "brute": float(np.mean(brute)),
                    "theory": any_prompt.expected_selected(procedure),
                    "score": over_prompts(estimators.expected_selected(pool.held_out, procedure)),
                }
            )
    return rows


def rules(cap: int) -> list[StoppingRule]:
    best = BestOfN(cap)
    targets = [Target(best, q, bound) for bound in ("point", "credible") for q in (0.8, 0.9)]
    fixed = [Fixed(BestOfN(n)) for n in COUNTS if n <= cap]
    return [*fixed, *targets, *(Cost(best, cost) for cost in (0.02, 0.01, 0.005, 0.002))]


def named(rule: StoppingRule) -> str:
    match rule:
        case Fixed():
            return f"always {rule.procedure.n}"
        case Target():
            return f"quantile {rule.quantile:g} ({rule.bound})"
        case Cost():
            return f"cost {rule.cost:g} per draw"
    raise TypeError(rule)


def stop(pool: Pool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draws used and quantile reached by each rule, over many random orders of the pool.

    The quantile is the selected candidate's rank in the prompt's whole pool over its size + 1, which the rule does not
    see, and of which n random draws are expected to reach n/(n + 1).
    """
    found = {rule: (np.zeros(len(pool.scores)), np.zeros(len(pool.scores))) for rule in rules(pool.half)}
    for _ in range(ORDERS):
        shuffled = pool.shuffled(rng)
        true = rankdata(shuffled.scores, axis=1)[:, pool.half :] / (pool.scores.shape[1] + 1)
        table = shuffled.table
        for row, key in enumerate(table.keys):
            calibration = table.lookup(key)
            draws = shuffled.held_out[row]
            ranks = calibration.rank(draws)
            for rule, (used, reached) in found.items():
                n = min(rule.procedure.n, pool.half)
                enough = np.flatnonzero(ranks[:n] >= rule.rank_needed(table.samples))
                drawn = int(enough[0]) + 1 if enough.size else n
                used[row] += drawn / ORDERS
                reached[row] += true[row, np.argmax(draws[:drawn])] / ORDERS
    return [
        {
            "rule": named(rule),
            "draws": over_prompts(used),
            "quantile": over_prompts(reached),
            "predicted": rule.expected(pool.half),
            "exact": rule.expected(),
        }
        for rule, (used, reached) in found.items()
    ]


def figure(
    pool: Pool, selected: list[dict[str, Any]], stopped: list[dict[str, Any]], good: Goodness, path: Path
) -> None:
    drawn, axes = panels(["held-out quantiles", "best and worst of n", "stopping rules"])
    edges = np.linspace(0, 1, good.histogram.size + 1)
    axes[0].stairs(good.histogram * good.histogram.size, edges, fill=True, color=COLOURS[5], alpha=0.7)
    axes[0].axhline(1, color="black", linestyle="--", linewidth=1)
    axes[0].set_ylim(0, 1.6)
    axes[0].set_xlabel(f"quantile among {good.samples} calibration candidates")
    axes[0].set_ylabel("density")
    for family, colour in (("best", COLOURS[0]), ("worst", COLOURS[3])):
        rows = [row for row in selected if row["procedure"].startswith(family)]
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
        rows = [row for row in stopped if row["rule"].startswith(start)]
        x, y = ([row[axis].value for row in rows] for axis in ("draws", "quantile"))
        axes[2].plot(x, y, marker + ("-" if start == "always" else ""), color=colour, label=label, markersize=5)
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(COUNTS, map(str, COUNTS))
    axes[2].set_xlabel("draws used")
    axes[2].set_ylabel("quantile reached")
    axes[2].legend(fontsize=8, frameon=False, loc="lower right")
    save(drawn, path, {"selected": _plain(selected), "stopped": _plain(stopped), "histogram": good.histogram.tolist()})


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return [round(number, 5) for number in (value.value, value.low, value.high)]
        return [round(number, 5) for number in value] if isinstance(value, tuple) else value

    return [{name: plain(value) for name, value in row.items()} for row in rows]


def report(
    pool: Pool,
    good: Goodness,
    selected: list[dict[str, Any]],
    stopped: list[dict[str, Any]],
    jitter: Floats,
    words: dict[str, str],
) -> str:
    prompts, width = pool.scores.shape
    curve_rows = [
        f"| {row['procedure']} | {row['quantile']} | {row['brute']:.3f} | {row['theory']:.3f} | {row['score']} |"
        for row in selected
    ]
    stop_rows = [
        f"| {row['rule']} | {row['draws'].value:.2f} | {row['predicted'].draws:.2f} | {row['quantile']} "
        f"| {row['predicted'].quantile:.3f} | {_saving(row)} |"
        for row in stopped
    ]
    continuous = Pool(rankdata(pool.scores + RESOLUTION * jitter, axis=1))
    broken = [
        f"{over_prompts(estimators.expected_selected(quantiles, WorstOfN(n)))} for worst-of-{n}"
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
        broken=", ".join(broken),
        compressed=float(np.mean(small)),
        resamples=RESAMPLES,
        orders=ORDERS,
        curve_rows="\n".join(curve_rows),
        stop_rows="\n".join(stop_rows),
        **words,
    )


def _saving(row: dict[str, Any]) -> str:
    """Draws saved against a fixed n that reaches the same quantile, q/(1 − q) of them."""
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
        read = read_pool(pool).shuffled(rng)
    except InvalidValue as error:
        raise click.ClickException(str(error)) from error
    table = read.table
    good = Goodness.of(table, table.keys, list(read.held_out), seed=seed)
    selected, stopped = curves(read, rng), stop(read, rng)
    plot = output.parent / "figures" / f"{output.stem}.svg"
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure(read, selected, stopped, good, plot)
    jitter = rng.uniform(-0.1, 0.1, read.scores.shape)  # breaks ties and nothing else
    shown = plot.relative_to(output.parent).as_posix()
    text = report(read, good, selected, stopped, jitter, {"plot": shown, "pool": pool.name, "source": source})
    output.write_text(text, encoding="utf-8")
    click.echo(f"{output}, {plot}, {plot.with_suffix('.json')}")


if __name__ == "__main__":
    main()
