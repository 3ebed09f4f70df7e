"""How fast the method is, beside the obvious alternative, in one run on one core.

    python benchmarks/method.py

The alternatives are slow: they do a share of the work, ours does the same share for the ratio, and then all of it.
Both must give the same answer.
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


def seconds(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The quickest of ``repeats`` runs, and what the last one gave."""
    taken, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - started)
    return min(taken), result


def show(task: str, ours: float, theirs: float | None = None) -> None:
    ratio = f"{theirs / ours:.0f}x" if theirs else ""
    print(ROW.format(task, f"{ours:.3f} s", f"{theirs:.3f} s" if theirs else "", ratio))


def calibration(rng: np.random.Generator) -> None:
    """Quantiles of a million rewards."""
    anchors, rewards = rng.normal(size=(10_000, 100)), rng.normal(size=(10_000, 100))
    table = CalibrationTable(tuple(map(str, range(len(anchors)))), anchors, Estimator.RANK, resolution=1e-9)
    some = 1000
    ours, ranks = seconds(lambda: table.quantile(table.keys[:some], rewards[:some]))
    theirs, percents = seconds(
        lambda: [percentileofscore(*rows, kind="mean") for rows in zip(anchors[:some], rewards[:some], strict=True)]
    )
    np.testing.assert_allclose(ranks, np.array(percents) / 100, atol=1e-12)
    show("100,000 rewards, 1,000 prompts x 100 anchors (percentileofscore)", ours, theirs)
    show("1,000,000 rewards, 10,000 prompts x 100 anchors", seconds(lambda: table.quantile(table.keys, rewards))[0])


def optimum() -> None:
    """The optimal transformation for best-of-32 at 0.5 nats."""
    procedure, mesh = BestOfN(32), graded_mesh()
    beta = optimal(procedure, kl=0.5).beta
    g = procedure.density(1 - mesh.nodes)

    def damped() -> float:
        """The fixed point by iteration, damped as much as it needs in order not to cycle."""
        gap, wins, before = mesh.nodes.copy(), 0.0, -1.0
        while abs(wins - before) > 1e-9:
            before = wins
            mass = np.exp(-gap / beta)
            policy = np.clip(1 - mesh.cumulative(mass) / mesh.integral(mass), 0, 1)
            wins = 1 - mesh.integral(procedure.cumulative(policy) * g)
            gap = 0.99 * gap + 0.01 * mesh.cumulative(procedure.density(policy) * g)
        return wins

    ours, phi = seconds(lambda: optimal(procedure, beta=beta))
    theirs, wins = seconds(damped, repeats=1)
    np.testing.assert_allclose(Policy.of(phi, beta).win_rate(procedure), wins, atol=1e-5)
    show("optimal transformation, best-of-32, given beta (damped iteration)", ours, theirs)
    show("optimal transformation, best-of-32, given KL", seconds(lambda: optimal(procedure, kl=0.5))[0])


def win_rates(rng: np.random.Generator) -> None:
    """Best-of-8 win rates of 1,000 prompts from 256 samples on each side."""
    procedure, some, resamples = BestOfN(8), 50, 2000
    policy, reference = rng.normal(0.3, 1, size=(1000, 256)), rng.normal(size=(1000, 256))

    def resampled() -> float:
        picks = [
            rng.permuted(np.broadcast_to(row, (resamples, row.size)), axis=1)[:, :8].max(axis=1)
            for side in (policy, reference)
            for row in side[:some]
        ]
        return float(np.mean([a > b for a, b in zip(picks[:some], picks[some:], strict=True)]))

    ours, exact = seconds(lambda: estimators.win_rate(policy[:some], reference[:some], procedure))
    theirs, brute = seconds(resampled, repeats=1)
    np.testing.assert_allclose(exact.mean(), brute, atol=4 * 0.5 / np.sqrt(some * resamples))
    show(f"win rate, {some} prompts x 256 x 256 ({resamples:,} resamples, error .01 each)", ours, theirs)
    whole = seconds(lambda: estimators.win_rate(policy, reference, procedure))[0]
    show("exact win rate, 1,000 prompts x 256 x 256", whole)


def imports() -> None:
    """A fresh interpreter's time to import, less that of an empty one."""

    def run(program: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True), repeats=5)[0]

    empty = run("")
    show("import infalign (import scipy.stats)", run("import infalign") - empty, run("import scipy.stats") - empty)
    show("import infalign, and a first win rate", run(FIRST) - empty)


FIRST = "from infalign import BestOfN, point; point('exp(10)', BestOfN(4), kl=0.5)"


def main() -> None:
    print(ROW.format("task (alternative)", "ours", "alternative", "ratio"))
    rng = np.random.default_rng(0)
    calibration(rng)
    optimum()
    win_rates(rng)
    imports()


if __name__ == "__main__":
    main()
