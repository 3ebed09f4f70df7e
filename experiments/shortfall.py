"""Explains why policies of ``reproduce.py`` win less often than theory allows.

    python experiments/shortfall.py --output docs/results/shortfall.md

It compares four win rates of a policy under one procedure. The first is what theory allows at the policy's KL with K
anchors. The second is what theory allows at the KL that shows in the distribution of the quantiles: the rest of the KL
only moves probability between responses of equal quality. The third and the fourth are what the policy wins on training
prompts and on test prompts.
"""

from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from reproduce import METHODS, Method, over_seeds, train_policy

from infalign import Estimate, point
from infalign.arrays import Floats
from infalign.estimators import win_rate
from infalign.parsing import parse_procedure
from infalign.procedures import BestOfN, FixedN, WorstOfN

SHOWN: tuple[tuple[str, FixedN], ...] = (
    ("calibrated identity", BestOfN(4)),
    ("CTRL optimal for best-of-4", BestOfN(4)),
    ("calibrated identity", WorstOfN(4)),
    ("CTRL optimal for worst-of-4", WorstOfN(4)),
)
PROMPTS, DRAWS, ANCHORS, BINS = 96, 64, 64, 16


def visible_kl(policy: Floats, reference: Floats) -> float:
    """Compute the KL of a policy's quantiles from the uniform distribution, in nats.

    The quantiles of all prompts share 16 bins, and the bias of so many counts is subtracted (Miller and Madow). The
    result is a lower bound of the mean over prompts, since the shares of different prompts average out.

    Args:
        policy: Rewards of the policy, of shape (P, M).
        reference: Rewards of the reference, of shape (P, M).
    """
    below = (policy[:, :, None] > reference[:, None, :]).sum(axis=2)
    ties = (policy[:, :, None] == reference[:, None, :]).sum(axis=2)
    quantiles = (below + ties / 2) / reference.shape[1]
    counts = np.histogram(quantiles, BINS, (0, 1))[0]
    share = counts / counts.sum()
    kl = float(np.sum(share * np.log(np.maximum(share * BINS, 1e-300))))
    return kl - (BINS - 1) / (2 * counts.sum())


@cache
def draw_on_training_prompts(artifacts: Any) -> Any:
    """Draw from a policy and its reference on prompts that the policy was trained on."""
    from infalign.storage import load_calibration
    from training.data import read_prompts
    from training.evaluation import collect
    from training.sampler import load_pair
    from training.scorer import CombinedScorer

    combination, record = load_calibration(artifacts.calibration)
    reference = artifacts.reference
    prompts = read_prompts(artifacts.data, "train")
    picks = np.random.default_rng(0).choice(len(prompts), PROMPTS, replace=False)
    return collect(
        *load_pair(artifacts.policy, reference, record.sampling),
        CombinedScorer.load(artifacts.reward, combination, reference),
        None,
        [prompts[i] for i in picks],
        DRAWS,
        seed=1,
    )


def compute_account(method: Method, procedure: FixedN, seeds: int) -> tuple[float, float, float, Estimate, Estimate]:
    """Return the KL that shows, the two win rates by theory, and the win rates on training and on test prompts."""
    from training.evaluation.draws import load_draws

    rows = []
    for seed in range(seeds):
        artifacts = train_policy(method, seed)
        test, train = load_draws(artifacts.evaluation), draw_on_training_prompts(artifacts)
        wins = [win_rate(d.policy.rewards, d.reference.rewards, procedure) for d in (train, test)]
        rows.append((test.kl.mean(), visible_kl(test.policy.rewards, test.reference.rewards), *wins))
    measured_kl, quantile_kl = (float(np.mean([row[i] for row in rows])) for i in (0, 1))
    aligned_for = parse_procedure(method.procedure)
    theory, visible = (
        point(method.transformation, procedure, kl=kl, anchors=ANCHORS, training_procedure=aligned_for).win_rate
        for kl in (measured_kl, quantile_kl)
    )
    return quantile_kl, theory, visible, *(over_seeds(np.array([row[i] for row in rows])) for i in (2, 3))


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
        quantile_kl, theory, visible, train, test = compute_account(by_name[name], procedure, seeds)
        lines.append(f"| {name} | {procedure} | {theory:.3f} | {quantile_kl:.2f} | {visible:.3f} | {train} | {test} |")
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo(output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
