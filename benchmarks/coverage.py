"""How often the intervals of attack success contain the truth, in simulations where it is known.

    python benchmarks/coverage.py

Every prompt has 32 samples, and a probability of a hit, drawn from a distribution Beta(a, b) anew in each trial.
An interval of 95% should contain the truth in 95% of trials. Each cell shows how often it does, and the mean width. By
chance, a share differs from the true one by up to 1 point in 2000 trials, and by up to 2.5 points in 300. It takes some
fifteen minutes on one core.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import click
import numpy as np

from infalign import Estimate, over_prompts
from infalign.detectors import Detector, correct_rate
from infalign.forecasts import BetaBinomial, forecast
from infalign.hits import hit_at_k, paired_difference, pooled_rate, wilson

Trial = Callable[[np.random.Generator, int], tuple[Estimate, float]]
"""Draws data for a number of prompts or samples, and returns an interval and the truth."""
SAMPLES = 32
PROMPTS = (30, 100, 300)
SHAPES = ((0.02, 20.0), (0.05, 5.0), (0.3, 6.0), (2.0, 20.0), (0.5, 0.5))
"""Distributions of the probability of a hit, from one in 1000 on average to nearly always or never."""


def draw_hits(rng: np.random.Generator, prompts: int, a: float, b: float) -> np.ndarray:
    """Draw (P, 32) samples of prompts."""
    return rng.uniform(size=(prompts, SAMPLES)) < rng.beta(a, b, size=(prompts, 1))


def try_rate(rng: np.random.Generator, prompts: int, a: float, b: float, k: int) -> tuple[Estimate, float]:
    """Estimate the mean hit@k."""
    return pooled_rate(hit_at_k(draw_hits(rng, prompts, a, b), k)), float(BetaBinomial(a, b)(k))


def try_bootstrap(rng: np.random.Generator, prompts: int, a: float, b: float, k: int) -> tuple[Estimate, float]:
    """Estimate the mean hit@k with a bootstrap interval."""
    rates = hit_at_k(draw_hits(rng, prompts, a, b), k)
    return over_prompts(rates, resamples=400, seed=int(rng.integers(2**31))), float(BetaBinomial(a, b)(k))


def try_difference(rng: np.random.Generator, prompts: int, a: float, b: float) -> tuple[Estimate, float]:
    """Estimate the difference of the mean rate between a policy and one that is hit two thirds as often."""
    chance = rng.beta(a, b, size=(prompts, 1))
    spared = rng.beta(40.0, 20.0, size=(prompts, 1))  # how much of it is left, for each prompt
    first, second = (rng.uniform(size=(prompts, SAMPLES)) < p for p in (chance, chance * spared))
    return paired_difference(hit_at_k(first, 1), hit_at_k(second, 1)), a / (a + b) / 3


def try_detector(
    rng: np.random.Generator, prompts: int, a: float, b: float, measured: int | None
) -> tuple[Estimate, float]:
    """Correct the mean rate for a detector with a sensitivity of 0.9 and a specificity of 0.95."""
    hits = draw_hits(rng, prompts, a, b)
    seen = rng.uniform(size=hits.shape) < np.where(hits, 0.9, 0.05)
    sensitivity, specificity = (rng.binomial(measured, p) / measured if measured else p for p in (0.9, 0.95))
    detector = Detector(sensitivity, specificity, measured, measured)
    return correct_rate(pooled_rate(hit_at_k(seen, 1)), detector), a / (a + b)


def try_forecast(
    rng: np.random.Generator, prompts: int, a: float, b: float, k: int, never: float = 0.0
) -> tuple[Estimate, float]:
    """Forecast the mean hit@k, where a share of prompts may never be hit."""
    hits = draw_hits(rng, prompts, a, b) & (rng.uniform(size=(prompts, 1)) >= never)
    return forecast(hits, k), (1 - never) * float(BetaBinomial(a, b)(k))


def try_wilson(rng: np.random.Generator, samples: int, chance: float, k: int) -> tuple[Estimate, float]:
    """Estimate hit@k of one prompt."""
    return wilson(int(rng.binomial(samples, chance)), samples, k), 1 - (1 - chance) ** k


def measure(trial: Trial, size: int, trials: int) -> str:
    """Run trials, and write how often the interval contained the truth, and its mean width."""
    rng = np.random.default_rng(0)
    found = [trial(rng, size) for _ in range(trials)]
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate, truth in found])
    return f"{100 * covered:.1f}% ({np.mean([estimate.high - estimate.low for estimate, _ in found]):.3f})"


def prompt_rows(trials: int, few: int) -> Iterator[tuple[str, str, Trial, int]]:
    """The intervals over prompts: name, setting, trial, number of trials."""
    for k in (1, 16):
        for a, b in SHAPES:
            yield "`pooled_rate`", f"Beta({a:g}, {b:g}), k = {k}", partial(try_rate, a=a, b=b, k=k), trials
    for a, b in SHAPES:
        yield "`over_prompts`", f"Beta({a:g}, {b:g}), k = 1", partial(try_bootstrap, a=a, b=b, k=1), few
    for a, b in SHAPES:
        yield "`paired_difference`", f"Beta({a:g}, {b:g}), k = 1", partial(try_difference, a=a, b=b), trials
    for a, b in SHAPES[1:4]:
        for measured in (None, 100):
            setting = f"Beta({a:g}, {b:g}), detector {f'measured on {measured}' if measured else 'known'}"
            yield "`correct_rate`", setting, partial(try_detector, a=a, b=b, measured=measured), trials
    for k in (64, 1000):
        for a, b in SHAPES:
            yield "`forecast`", f"Beta({a:g}, {b:g}), k = {k}", partial(try_forecast, a=a, b=b, k=k), few
    for k in (64, 1000):
        setting = f"30% never hit, others Beta(2, 20), k = {k}"
        yield "`forecast`", setting, partial(try_forecast, a=2.0, b=20.0, k=k, never=0.3), few


def sample_rows(trials: int) -> Iterator[tuple[str, str, Trial, int]]:
    """The intervals of one prompt: name, setting, trial, number of trials."""
    for chance in (0.02, 0.1, 0.5):
        yield "`wilson`", f"{chance:g}, k = 4", partial(try_wilson, chance=chance, k=4), trials


def show(sizes: Sequence[int], unit: str, rows: Iterator[tuple[str, str, Trial, int]]) -> None:
    """Print a table."""
    print(f"| interval | probability of a hit | {' | '.join(f'{size} {unit}' for size in sizes)} |")
    print("|---|---|" + "---|" * len(sizes))
    for name, setting, trial, trials in rows:
        print(f"| {name} | {setting} | {' | '.join(measure(trial, size, trials) for size in sizes)} |", flush=True)


@click.command()
@click.option(
    "--trials", type=click.IntRange(min=1), default=2000, show_default=True, help="Trials of quick intervals."
)
@click.option("--few", type=click.IntRange(min=1), default=300, show_default=True, help="Trials of slow intervals.")
def main(trials: int, few: int) -> None:
    """Print both tables."""
    show(PROMPTS, "prompts", prompt_rows(trials, few))
    print()
    show((32, 128, 512), "samples", sample_rows(trials))


if __name__ == "__main__":
    main()
