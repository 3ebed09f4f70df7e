"""How many tokens stopping and early rejection save over a fixed N of the same mean quantile, on the rollouts of a run.

    python -m benchmarks.rejection [RUN] [BUNDLE]

It replays the rollouts of a training run (by default the demo's) with the prefix scorer of its bundle, so it draws
nothing. The responses to a prompt are split at random: K anchors, by which a server would know quantiles; candidates;
and the rest, which says how good the selected candidate really is. Everything is paired with the fixed N that draws the
first N of the same candidates.

The target, the cap and how many candidates run side by side are searched: those with the fewest tokens whose mean
quantile is that of N, or at most 0.005 above it. They are searched on validation prompts and measured on test prompts,
and searched and measured on both together: a few dozen prompts do not say exactly which quantiles are equal.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from infalign import BestOfN, Rehearsal, Target, over_prompts, read_bundle
from infalign.arrays import Floats
from infalign.home import home
from infalign.manifest import ScorerRecord
from training.prefix_figures import predict
from training.prefix_rows import read_scored_prompts

ANCHORS, REST, REPEATS = 32, 4, 16
"""K, the least number of responses that say how good an answer is, and how often the responses are split."""
FIXED = (4, 8, 16)
TOLERANCE = 0.005
"""The most by which the mean quantile may exceed that of the fixed N."""
SLACK = (1.25, 1.5, 1.75, 2, 2.5, 3)
"""Caps that are tried, in N."""
HEAD = "| N | prompts | draws | target | at most | side by side | quantile − fixed N's | tokens of N | rounds of N |"


@dataclass(frozen=True)
class Trial:
    """Groups of candidates for P prompts, R for each."""

    known: Rehearsal
    """(P, R, n) candidates with the quantiles that K anchors give them. Equal ones are told apart by reward."""
    truth: Floats
    """(P, R, n) quantiles among the responses that are neither anchors nor candidates."""

    def __add__(self, other: "Trial") -> "Trial":
        """Put the prompts of two trials together."""
        ours, theirs = self.known, other.known
        steps = min(ours.laws.shape[-2], theirs.laws.shape[-2])  # no response is so long that the rest counts
        both = Rehearsal(
            np.concatenate([ours.quantiles, theirs.quantiles]),
            np.concatenate([ours.lengths, theirs.lengths]),
            np.concatenate([ours.laws[..., :steps, :], theirs.laws[..., :steps, :]]),
            ours.step,
        )
        return Trial(both, np.concatenate([self.truth, other.truth]))

    def cap(self, n: int) -> "Trial":
        """Keep the first n candidates."""
        known = self.known
        first = replace(
            known,
            quantiles=known.quantiles[..., :n],
            lengths=known.lengths[..., :n],
            laws=known.laws[..., :n, :, :],
        )
        return Trial(first, self.truth[..., :n])


@dataclass(frozen=True)
class Plan:
    """A way to draw candidates: by default, N of them side by side."""

    rule: Target | None = None
    width: int | None = None
    rejects: bool = False


@dataclass(frozen=True)
class Result:
    """What a plan did: three figures for each prompt, means over its groups."""

    quantile: Floats
    tokens: Floats
    rounds: Floats


def split(rehearsal: Rehearsal, rewards: Floats, candidates: int, seed: int = 0) -> Trial:
    """Split the responses to each prompt into anchors, candidates and the rest.

    Args:
        rehearsal: (P, S) responses.
        rewards: (P, S) their rewards.
        candidates: How many of them are candidates.
        seed: Seed of the splits.
    """
    prompts, samples = rewards.shape
    numbers = np.tile(np.arange(samples), (prompts, REPEATS, 1))
    order = np.random.default_rng(seed).permuted(numbers, axis=-1)
    drawn = np.take_along_axis(np.repeat(rewards[:, None], REPEATS, axis=1), order, axis=-1)
    anchors, ours, rest = np.split(drawn, [ANCHORS, ANCHORS + candidates], axis=-1)
    ties = 1e-9 * np.argsort(np.argsort(ours, axis=-1), axis=-1)
    estimates = (_rank(ours, anchors) + 0.5) / (ANCHORS + 1) + ties
    known = rehearsal.take(order[..., ANCHORS : ANCHORS + candidates])
    return Trial(replace(known, quantiles=estimates), _rank(ours, rest) / rest.shape[-1])


def _rank(rewards: Floats, among: Floats) -> Floats:
    """Mid-ranks of rewards among others, along the last axis."""
    ours, others = rewards[..., None], among[..., None, :]
    return np.asarray(((ours > others).sum(axis=-1) + (ours >= others).sum(axis=-1)) / 2)


def run(plan: Plan, trial: Trial, n: int, record: ScorerRecord) -> Result:
    """Carry out a plan.

    Args:
        plan: The plan.
        trial: The candidates.
        n: The fixed N, for plans without a rule.
        record: What the scorer says about rejection.
    """
    rule = plan.rule
    procedure = rule.procedure if rule else BestOfN(n)
    trial = trial.cap(procedure.n)
    known, rows = trial.known, np.indices(trial.truth.shape[:2])
    if rule and plan.width is None:  # in waves
        ends = np.cumsum(rule.waves(ANCHORS))
        best = np.maximum.accumulate(known.quantiles, axis=-1)[..., ends - 1]
        reached = best >= rule.quantile
        reached[..., -1] = True
        last = reached.argmax(axis=-1)
        drawn = np.arange(procedure.n) < ends[last][..., None]
        selected = np.where(drawn, known.quantiles, -1).argmax(axis=-1)
        tokens = np.where(drawn, known.lengths, 0).sum(axis=-1)
        starts = ends - np.diff(ends, prepend=0)
        longest = np.maximum.reduceat(-(-known.lengths // known.step), starts, axis=-1)
        rounds = np.where(np.arange(ends.size) <= last[..., None], longest, 0).sum(axis=-1)
    else:
        rejection = record.rejection_under(rule, ANCHORS) if rule else record.rejection_for(procedure)
        done = known.run(rejection if plan.rejects else None, plan.width, rule.quantile if rule else None)
        selected, tokens, rounds = done.selected, done.tokens, done.rounds
    quantile = trial.truth[rows[0], rows[1], selected]
    return Result(*(np.asarray(each.mean(axis=1), dtype=float) for each in (quantile, tokens, rounds)))


def plans(n: int, most: int) -> dict[str, list[Plan]]:
    """List the plans that may be as good as a fixed N, by kind."""
    middle = round((ANCHORS + 1) * n / (n + 1))
    ranks = np.arange(middle - 40 // (n + 1), min(ANCHORS, middle + 1) + 1)
    targets = (ranks + 0.25) / (ANCHORS + 1)  # each is met by the estimate of its rank
    caps = sorted({min(most, round(n * slack)) for slack in SLACK})
    rules = [Target(BestOfN(cap), float(target)) for cap in caps for target in targets]
    return {
        "all, early rejection": [Plan(rejects=True)],
        "in waves": [Plan(rule) for rule in rules],
        "in rounds": [Plan(rule, 1) for rule in rules],
        "in rounds, early rejection": [Plan(rule, 1, rejects=True) for rule in rules],
        "the same, N/2 side by side": [Plan(rule, n // 2, rejects=True) for rule in rules],
    }


def search(options: Sequence[Plan], trial: Trial, n: int, record: ScorerRecord) -> Plan:
    """Find the plan with the fewest tokens that is as good as a fixed N; if none is, the one that is nearest to it."""
    if len(options) == 1:
        return options[0]
    fixed = run(Plan(), trial, n, record)
    found = []
    for number, plan in enumerate(options):
        done = run(plan, trial, n, record)
        gained = done.quantile.mean() - fixed.quantile.mean()
        excess = max(0.0, -gained, gained - TOLERANCE)
        found.append((excess, done.tokens.mean(), number))
    return options[min(found)[-1]]


def read(run_directory: Path, bundle_directory: Path) -> tuple[ScorerRecord, dict[str, tuple[Rehearsal, Floats]]]:
    """Read the rollouts of a run, with the laws that the scorer of its bundle predicts.

    Args:
        run_directory: Directory of the run. The latest of its stages are those of the bundle.
        bundle_directory: Directory of the bundle.

    Returns:
        The record of the scorer; and by split the (P, S) responses, and their rewards.
    """
    bundle = read_bundle(bundle_directory)
    assert bundle.scorer, "the bundle has no prefix scorer"  # noqa: S101 - a benchmark
    data, rollouts = (
        max(run_directory.glob(f"{stage}-*"), key=lambda path: path.stat().st_mtime) for stage in ("data", "rollouts")
    )
    tokenizer = AutoTokenizer.from_pretrained(bundle.reference, trust_remote_code=False)
    found = {}
    for name in ("validation", "test"):
        prompts = read_scored_prompts(data, name, rollouts, tokenizer, bundle.combination)
        step, samples = bundle.scorer.checkpoint, bundle.table.samples
        seen = predict(bundle.prefix_scorer, prompts, bundle.scorer.edges, step, samples)
        rehearsal = Rehearsal(seen.quantiles, seen.lengths, seen.checkpoints.probabilities, step)
        found[name] = rehearsal, np.array(seen.rewards)
    return bundle.scorer, found


def main() -> None:
    """Print the table."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    defaults = [home() / "runs" / "demo", home() / "bundles" / "demo"]
    record, splits = read(*(paths + defaults[len(paths) :]))
    print(HEAD)
    print("|---" * (HEAD.count("|") - 1) + "|")
    for n in FIXED:
        most = min(round(n * max(SLACK)), splits["test"][1].shape[1] - ANCHORS - REST)
        trials = {name: split(*responses, most) for name, responses in splits.items()}
        trials["both"] = trials["validation"] + trials["test"]
        for name, options in plans(n, most).items():
            for searched, measured in (("validation", "test"), ("both", "both")):
                plan, trial = search(options, trials[searched], n, record), trials[measured]
                print(_row(n, measured, name, plan, run(plan, trial, n, record), run(Plan(), trial, n, record)))


def _row(n: int, measured: str, name: str, plan: Plan, done: Result, fixed: Result) -> str:
    gained = over_prompts(done.quantile - fixed.quantile)
    tokens = over_prompts(np.stack([done.tokens, fixed.tokens], axis=1), _ratio)
    target, cap = (f"{plan.rule.quantile:.3f}", plan.rule.procedure.n) if plan.rule else ("", n)
    return (
        f"| {n} | {measured} | {name} | {target} | {cap} | {plan.width or ''} "
        f"| {gained.value:+.4f} [{gained.low:+.4f}, {gained.high:+.4f}] | {tokens} "
        f"| {done.rounds.mean() / fixed.rounds.mean():.2f} |"
    )


def _ratio(sums: Floats) -> float:
    ours, theirs = sums.sum(axis=0)
    return float(ours / theirs)


if __name__ == "__main__":
    main()
