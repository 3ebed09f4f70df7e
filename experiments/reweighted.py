"""The pipeline against theory, with exact reweighting in place of a trained network.

    python experiments/reweighted.py BUNDLE --output docs/results/reweighted.md

For prompts of the help desk, M new responses of the bundle's reference form a table. A policy is this table with
weights e^{Φ(C)/β}, where the bundle's calibration gives C. It must win as often as the theory of K anchors says, for
every transformation and procedure. Whatever a trained policy misses beyond that is due to the network.
"""

from pathlib import Path

import click
import numpy as np

from infalign import BestOfN, Estimate, Procedure, Standard, WorstOfN, over_prompts, parse_transformation, point
from infalign.arrays import Floats
from infalign.bundle import Bundle, read_bundle
from infalign.templates import prompt_key, render_prompt

TRANSFORMATIONS = ("identity", "log", "exp(10)", "exp(-10)", "optimal")
PROCEDURES: tuple[Procedure, ...] = (Standard(), BestOfN(2), BestOfN(4), BestOfN(8), WorstOfN(2), WorstOfN(4))


def table_win_rate(rewards: Floats, weights: Floats, procedure: Procedure) -> float:
    """Compute the win rate of the weighted table over the unweighted one. Ties count half.

    Args:
        rewards: Rewards of the M responses.
        weights: Weights of the M responses.
        procedure: Procedure that both are decoded by.
    """
    _, group = np.unique(rewards, return_inverse=True)
    policy, reference = (
        np.concatenate([[0.0], procedure.cumulative(np.clip(np.cumsum(np.bincount(group, mass)), 0, 1))])
        for mass in (weights / weights.sum(), np.full(rewards.size, 1 / rewards.size))
    )
    return float(np.diff(policy) @ (reference[:-1] + reference[1:]) / 2)


def table_kl(weights: Floats) -> float:
    """Compute the KL of the weighted table from the unweighted one, in nats."""
    share = weights / weights.sum()
    return float(np.sum(share * np.log(np.maximum(share * share.size, 1e-300))))


def reweight(
    rewards: Floats, quantiles: Floats, samples: int, kl: float
) -> list[tuple[str, Estimate, Procedure, Estimate, float]]:
    """Compare reweighted tables with theory.

    Args:
        rewards: Rewards of shape (P, M).
        quantiles: Their quantiles, of the same shape.
        samples: K, rewards per prompt in the calibration.
        kl: KL of the policies, in nats.

    Returns:
        For every transformation and procedure, the measured KL and win rate over prompts and the win rate by theory.
    """
    rows = []
    for name in TRANSFORMATIONS:
        for procedure in PROCEDURES:
            phi = parse_transformation(name, procedure, kl=kl)
            theory = point(name, procedure, kl=kl, anchors=samples)
            weights = np.exp((phi(quantiles) - phi.top) / theory.beta)
            kl_estimate = over_prompts([table_kl(row) for row in weights])
            wins = over_prompts([table_win_rate(*pair, procedure) for pair in zip(rewards, weights, strict=True)])
            rows.append((name, kl_estimate, procedure, wins, theory.win_rate))
    return rows


def draw_rewards(bundle: Bundle, prompts: int, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Draw new responses of a bundle's reference.

    Args:
        bundle: The bundle.
        prompts: P, the number of prompts.
        draws: M, responses per prompt.
        seed: Seed of the draws.

    Returns:
        Rewards and quantiles, each of shape (P, M).
    """
    from training.data import corpus
    from training.runtime import prepare_process
    from training.sampler import Sampler
    from training.scorer import CombinedScorer

    prepare_process()
    questions = corpus.prompts()
    conversations = [
        [{"role": "user", "content": questions[i].text}]
        for i in np.linspace(0, len(questions) - 1, prompts).astype(int)
    ]
    sampler = Sampler.load(bundle.reference, bundle.manifest.sampling)
    repeats = [messages for messages in conversations for _ in range(draws)]
    texts = sampler.text(sampler.draw(repeats, seed, "draws"))
    scorer = CombinedScorer.load(bundle.reward_model, bundle.combination, bundle.reference)
    rewards = scorer.score(repeats, texts).astype(np.float64).reshape(-1, draws)
    keys = [prompt_key(render_prompt(sampler.tokenizer, messages)) for messages in conversations]
    return rewards, bundle.table.quantile(keys, rewards)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The table, Markdown.")
@click.option("--kl", type=click.FloatRange(0, 10, min_open=True), default=0.5, show_default=True, help="Nats.")
@click.option("--prompts", type=click.IntRange(2), default=96, show_default=True)
@click.option("--draws", type=click.IntRange(8), default=512, show_default=True, help="Responses per prompt.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(bundle: Path, output: Path, kl: float, prompts: int, draws: int, seed: int) -> None:
    """Compare the reweighted reference of BUNDLE (of the help desk) with theory."""
    source = read_bundle(bundle)
    rewards, quantiles = draw_rewards(source, prompts, draws, seed)
    rows = reweight(rewards, quantiles, source.table.samples, kl)
    inside = sum(wins.low <= theory <= wins.high for *_, wins, theory in rows)
    lines = [
        f"| {name} | {procedure} | {estimate} | {wins} | {theory:.3f} |"
        for name, estimate, procedure, wins, theory in rows
    ]
    output.write_text(
        REPORT.format(
            kl=kl,
            prompts=prompts,
            draws=draws,
            k=source.table.samples,
            inside=inside,
            rows="\n".join(lines),
            all=len(rows),
        ),
        encoding="utf-8",
    )
    click.echo(output.read_text(encoding="utf-8"))


REPORT = """# The reference, reweighted

{draws} fresh responses of a reference to each of {prompts} prompts, weighted by e^(Φ(C)/β) with C from K = {k}
anchors and β for KL {kl:g}, against the theory of K anchors. 95% intervals over prompts; theory is inside {inside} of
{all}. Made by `python experiments/reweighted.py $INFALIGN_HOME/bundles/study --output docs/results/reweighted.md`.

| transformation | procedure | KL | win rate | theory |
|---|---|---|---|---|
{rows}
"""

if __name__ == "__main__":
    main()
