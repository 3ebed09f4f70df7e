"""How many draws a target quantile saves over a fixed N of the same mean quantile.

    python -m benchmarks.adaptive

It replays draws of the reference in quantile space, so it needs no server and no model: a prompt is K uniform anchors,
and a candidate is a uniform number. For each fixed N, it takes the target and the cap with the fewest draws among
those that are as good as N: whose mean quantile is that of N, or at most 0.005 above it. It does so once for
candidates that are drawn one by one, and once for waves. The closed forms find both, and the draws are replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infalign import BestOfN, Target
from infalign.arrays import Floats

ANCHORS = (32, 64)
FIXED = (4, 8, 16)
TOLERANCE = 0.005
"""The most by which the mean quantile may exceed that of the fixed N."""
PROMPTS = 40_000
HEAD = "| K | fixed N | draws | target | at most | quantile, fixed | quantile | mean draws | of N | rounds, p50 | p95 |"


@dataclass(frozen=True)
class Replay:
    """What a rule did to many prompts."""

    quantile: float
    """Mean true quantile of the selected candidate."""
    draws: float
    """Mean number of draws."""
    rounds: tuple[float, float]
    """Median and 95th percentile of the number of waves, one after another."""


def schedule(rule: Target, samples: int, in_waves: bool) -> tuple[int, ...]:
    """Return the sizes of the waves: those of the library, or one candidate each."""
    return rule.waves(samples) if in_waves else (1,) * rule.procedure.n


def match(n: int, samples: int, in_waves: bool) -> Target:
    """Find the target and the cap with the fewest draws that are as good as a fixed N.

    Args:
        n: The fixed N.
        samples: K, the number of anchors.
        in_waves: Whether candidates are drawn in waves, or one by one.

    Returns:
        The rule. Its cap is at most 8 N.
    """
    fixed = BestOfN(n).expected_quantile
    fits: list[tuple[float, Target]] = []
    for rank in range(1, samples + 1):
        for cap in range(n, 8 * n + 1):
            rule = Target(BestOfN(cap), rank / (samples + 1))  # the first estimate above it is that of the rank
            expected = rule.expectation(samples, schedule(rule, samples, in_waves))
            if 0 <= expected.quantile - fixed <= TOLERANCE:
                fits.append((expected.draws, rule))
    return min(fits, key=lambda fit: fit[0])[1]


def replay(rule: Target, samples: int, waves: Sequence[int], rng: np.random.Generator) -> Replay:
    """Draw candidates for many prompts until the rule stops.

    Args:
        rule: The rule, for best-of-n.
        samples: K, the number of anchors of a prompt.
        waves: Sizes of the waves.
        rng: Random numbers.
    """
    anchors = np.sort(rng.uniform(size=(PROMPTS, samples)), axis=1)
    candidates = rng.uniform(size=(PROMPTS, rule.procedure.n))
    ends = np.cumsum(waves)
    best: Floats = np.maximum.accumulate(candidates, axis=1)[:, ends - 1]
    reached = best > anchors[:, [rule.rank_threshold(samples) - 1]]
    reached[:, -1] = True
    last = np.argmax(reached, axis=1)
    selected = best[np.arange(PROMPTS), last]
    median, slow = np.percentile(last + 1, [50, 95]).tolist()
    return Replay(float(np.mean(selected)), float(np.mean(ends[last])), (median, slow))


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    print(HEAD)
    print("|---" * HEAD.count(" | ") + "|---|")
    for samples in ANCHORS:
        for n in FIXED:
            for in_waves in (False, True):
                rule = match(n, samples, in_waves)
                done = replay(rule, samples, schedule(rule, samples, in_waves), rng)
                print(
                    f"| {samples} | {n} | {'in waves' if in_waves else 'one by one'} | {rule.quantile:.3f} "
                    f"| {rule.procedure.n} | {BestOfN(n).expected_quantile:.3f} | {done.quantile:.3f} "
                    f"| {done.draws:.2f} | {done.draws / n:.2f} | {done.rounds[0]:.0f} | {done.rounds[1]:.0f} |"
                )


if __name__ == "__main__":
    main()
