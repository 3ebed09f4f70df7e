"""How fast the method is compared with the obvious alternatives, on one core.

    python benchmarks/method.py

The alternatives are slow, so they do only part of the work. Our code does the same part, for the ratio, and then all of
it. Both must give the same result.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import percentileofscore

from infalign import BestOfN, CalibrationTable, Estimator, Policy, estimators, optimal
from infalign.quadrature import graded_mesh

ROW = "{:<62}{:>10}{:>14}{:>10}"


def time_work(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Time a function.

    Args:
        work: The function.
        repeats: How often it is run.

    Returns:
        Seconds of the fastest run, and the result of the last one.
    """
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def show(task: str, ours: float, theirs: float | None = None) -> None:
    """Print a line of the table."""
    ratio = f"{theirs / ours:.0f}x" if theirs else ""
    print(ROW.format(task, f"{ours:.3f} s", f"{theirs:.3f} s" if theirs else "", ratio))


def compare_calibration(rng: np.random.Generator) -> None:
    """Compare the quantiles of a million rewards with scipy's percentileofscore."""
    anchors, rewards = rng.normal(size=(10_000, 100)), rng.normal(size=(10_000, 100))
    table = CalibrationTable(tuple(map(str, range(len(anchors)))), anchors, Estimator.RANK, resolution=1e-9)
    some = 1000
    ours, ranks = time_work(lambda: table.quantile(table.keys[:some], rewards[:some]))
    theirs, percents = time_work(
        lambda: [percentileofscore(*rows, kind="mean") for rows in zip(anchors[:some], rewards[:some], strict=True)]
    )
    np.testing.assert_allclose(ranks, np.array(percents) / 100, atol=1e-12)
    show("100,000 rewards, 1,000 prompts x 100 anchors (percentileofscore)", ours, theirs)
    show("1,000,000 rewards, 10,000 prompts x 100 anchors", time_work(lambda: table.quantile(table.keys, rewards))[0])


def compare_optimum() -> None:
    """Compare the optimal transformation for best-of-32 at 0.5 nats with damped iteration."""
    procedure, mesh = BestOfN(32), graded_mesh()
    beta = optimal(procedure, kl=0.5).beta
    g = procedure.density(1 - mesh.nodes)

    def iterate_damped() -> float:
        """The fixed point by iteration, damped as much as it needs in order not to cycle."""
        gap, wins, before = mesh.nodes.copy(), 0.0, -1.0
        while abs(wins - before) > 1e-9:
            before = wins
            mass = np.exp(-gap / beta)
            policy = np.clip(1 - mesh.cumulative(mass) / mesh.integral(mass), 0, 1)
            wins = 1 - mesh.integral(procedure.cumulative(policy) * g)
            gap = 0.99 * gap + 0.01 * mesh.cumulative(procedure.density(policy) * g)
        return wins

    ours, phi = time_work(lambda: optimal(procedure, beta=beta))
    theirs, wins = time_work(iterate_damped, repeats=1)
    np.testing.assert_allclose(Policy.of(phi, beta).win_rate(procedure), wins, atol=1e-5)
    show("optimal transformation, best-of-32, given beta (damped iteration)", ours, theirs)
    show("optimal transformation, best-of-32, given KL", time_work(lambda: optimal(procedure, kl=0.5))[0])


def compare_win_rates(rng: np.random.Generator) -> None:
    """Compare best-of-8 win rates of 1,000 prompts, from 256 samples on each side, with resampling."""
    procedure, some, resamples = BestOfN(8), 50, 2000
    policy, reference = rng.normal(0.3, 1, size=(1000, 256)), rng.normal(size=(1000, 256))

    def resample() -> float:
        picks = [
            rng.permuted(np.broadcast_to(row, (resamples, row.size)), axis=1)[:, :8].max(axis=1)
            for side in (policy, reference)
            for row in side[:some]
        ]
        return float(np.mean([a > b for a, b in zip(picks[:some], picks[some:], strict=True)]))

    ours, exact = time_work(lambda: estimators.win_rate(policy[:some], reference[:some], procedure))
    theirs, brute = time_work(resample, repeats=1)
    np.testing.assert_allclose(exact.mean(), brute, atol=4 * 0.5 / np.sqrt(some * resamples))
    show(f"win rate, {some} prompts x 256 x 256 ({resamples:,} resamples, error .01 each)", ours, theirs)
    all_prompts = time_work(lambda: estimators.win_rate(policy, reference, procedure))[0]
    show("exact win rate, 1,000 prompts x 256 x 256", all_prompts)


def compare_imports() -> None:
    """Compare the time to import infalign with that of scipy.stats, each less the start of an interpreter."""

    def time_program(program: str) -> float:
        return time_work(lambda: subprocess.run([sys.executable, "-c", program], check=True), repeats=5)[0]

    empty = time_program("")
    show(
        "import infalign (import scipy.stats)",
        time_program("import infalign") - empty,
        time_program("import scipy.stats") - empty,
    )
    show("import infalign, and a first win rate", time_program(FIRST) - empty)


FIRST = "from infalign import BestOfN, point; point('exp(10)', BestOfN(4), kl=0.5)"


def main() -> None:
    """Print the table."""
    print(ROW.format("task (alternative)", "ours", "alternative", "ratio"))
    rng = np.random.default_rng(0)
    compare_calibration(rng)
    compare_optimum()
    compare_win_rates(rng)
    compare_imports()


if __name__ == "__main__":
    main()
