"""Where the win rate goes that theory has and a trained policy has not, for the policies of ``reproduce.py``.

    python experiments/shortfall.py --output docs/results/shortfall.md

Four win rates of each, under the procedure it is compared by: what theory leaves at its KL with K anchors; what theory
leaves at the KL that shows in the distribution of its quantiles, which is what moving probability between responses of
equal quality leaves of it; what it wins on prompts it was trained on; what it wins on test prompts.
"""

from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from reproduce import METHODS, Method, over_seeds, trained

from infalign import Estimate, point
from infalign.estimators import win_rate
from infalign.procedures import BestOfN, FixedN, WorstOfN, parse_procedure

Floats = NDArray[np.float64]
SHOWN: tuple[tuple[str, FixedN], ...] = (
    ("calibrated identity", BestOfN(4)),
    ("CTRL optimal for best-of-4", BestOfN(4)),
    ("calibrated identity", WorstOfN(4)),
    ("CTRL optimal for worst-of-4", WorstOfN(4)),
)
PROMPTS, DRAWS, ANCHORS, BINS = 96, 64, 64, 16


def visible_kl(policy: Floats, reference: Floats) -> float:
    """KL of the policy's quantiles from uniform, in nats, of rewards (P, M) against (P, M) of the reference.

    Quantiles of all prompts share 16 bins, less the bias of so many counts (Miller and Madow): a lower bound on the
    mean over prompts, as shares of different prompts average out.
    """
    below = (policy[:, :, None] > reference[:, None, :]).sum(axis=2)
    ties = (policy[:, :, None] == reference[:, None, :]).sum(axis=2)
    quantiles = (below + ties / 2) / reference.shape[1]
    counts = np.histogram(quantiles, BINS, (0, 1))[0]
    share = counts / counts.sum()
    kl = float(np.sum(share * np.log(np.maximum(share * BINS, 1e-300))))
    return kl - (BINS - 1) / (2 * counts.sum())


@cache
def train_draws(parts: Any) -> Any:
    """New draws of a policy and its reference on prompts that it was trained on."""
    from infalign.bundle import load_calibration
    from training import data, evaluation
    from training.sampler import load_pair
    from training.scorer import CombinedScorer

    combination, record = load_calibration(parts.calibration)
    reference = parts.reference / "model"
    prompts = data.read_prompts(parts.data, "train")
    chosen = np.random.default_rng(0).choice(len(prompts), PROMPTS, replace=False)
    return evaluation.collect(
        *load_pair(parts.policy / "model", reference, record.sampling),
        CombinedScorer.load(parts.reward / "model", combination, reference),
        None,
        [prompts[i] for i in chosen],
        DRAWS,
        seed=1,
    )


def account(method: Method, procedure: FixedN, seeds: int) -> tuple[float, float, float, Estimate, Estimate]:
    """KL that shows, theory's two win rates, and those on training and on test prompts."""
    from training.evaluation.draws import load_draws

    rows = []
    for seed in range(seeds):
        parts = trained(method, seed)
        test, train = load_draws(parts.measured), train_draws(parts)
        wins = [win_rate(d.policy.rewards, d.reference.rewards, procedure) for d in (train, test)]
        rows.append((test.kl.mean(), visible_kl(test.policy.rewards, test.reference.rewards), *wins))
    spent, shown = (float(np.mean([row[i] for row in rows])) for i in (0, 1))
    aligned_for = parse_procedure(method.procedure)
    theory, visible = (
        point(method.transformation, procedure, kl=kl, anchors=ANCHORS, aligned_for=aligned_for).win_rate
        for kl in (spent, shown)
    )
    return shown, theory, visible, *(over_seeds(np.array([row[i] for row in rows])) for i in (2, 3))


@click.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="As of reproduce.py.")
def main(output: Path, seeds: int) -> None:
    """Write the table."""
    by_name = {method.name: method for method in METHODS}
    lines = [
        "# Where the rest of the room goes",
        "",
        f"The policies of [reproduce.md](reproduce.md), {seeds} seeds; {PROMPTS} test prompts and {PROMPTS} that they "
        "were trained on. Made by `python experiments/shortfall.py --output docs/results/shortfall.md`, which says "
        "what the columns are.",
        "",
        "| policy | under | theory at its KL | KL that shows | theory at that | training prompts | test prompts |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, procedure in SHOWN:
        shown, theory, visible, train, test = account(by_name[name], procedure, seeds)
        lines.append(f"| {name} | {procedure} | {theory:.3f} | {shown:.2f} | {visible:.3f} | {train} | {test} |")
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo(output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
