"""How fast vLLM draws rollouts compared with transformers, and whether both draw the same, on one core.

    python benchmarks/rollouts.py [BUNDLE]

Each engine draws K = 64 responses of the bundle's reference (default: the demo's) to its test prompts. The prompts are
used as they are, and after a thousand further words that the responses to a prompt share. Each engine has a process of
its own.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from infalign.bundle import read_bundle
from infalign.home import bundle_path

K, PROMPTS, LONG_PROMPTS, PREFIX = 64, 64, 8, 1000
ROW = "{:<58}{:>12}{:>14}{:>8}"


@dataclass(frozen=True)
class Measurement:
    """What one engine drew, and how long it took."""

    ready: float
    """Time at which it could draw, in seconds since the epoch."""
    short: float
    """Seconds to draw for the short prompts."""
    long: float
    """Seconds to draw for the long prompts."""
    lengths: NDArray[np.float64]
    """Tokens of the short prompts' responses, of shape (PROMPTS, K)."""
    rewards: NDArray[np.float64]
    """Rewards of the same responses, of shape (PROMPTS, K)."""


def measure(engine: str, path: Path) -> Measurement:
    """Draw with one engine."""
    from training.evaluation.command import read_evaluation_prompts
    from training.evaluation.report import PROMPTS as FILE
    from training.runtime import prepare_process
    from training.sampler import Sampler
    from training.scorer import CombinedScorer
    from training.vllm_sampler import VllmSampler

    prepare_process()
    bundle = read_bundle(path)
    law = bundle.manifest.sampling
    sampler = VllmSampler.load(bundle.reference, law) if engine == "vllm" else Sampler.load(bundle.reference, law)
    ready = time.time()
    prompts = read_evaluation_prompts(bundle.policy().evaluation / FILE, Sampler.load(bundle.reference, law), PROMPTS)
    text = " ".join(str(messages[-1]["content"]) for messages in prompts)
    words = (text * (1 + PREFIX // len(text.split()))).split()
    long = [
        [{"role": "user", "content": " ".join([str(number), *words[:PREFIX], str(messages[-1]["content"])])}]
        for number, messages in enumerate(prompts[:LONG_PROMPTS])
    ]

    start = time.perf_counter()
    repeats = [messages for messages in prompts for _ in range(K)]
    responses = sampler.draw(repeats, seed=0, stage=engine)
    short = time.perf_counter() - start
    start = time.perf_counter()
    sampler.draw([messages for messages in long for _ in range(K)], seed=0, stage=engine)
    behind_prefix = time.perf_counter() - start
    scorer = CombinedScorer.load(bundle.reward_model, bundle.combination, bundle.reference)
    rewards = scorer.score(repeats, sampler.text(responses)).astype(np.float64)
    lengths = np.array([len(tokens) for tokens in responses], dtype=np.float64)
    return Measurement(ready, short, behind_prefix, lengths.reshape(-1, K), rewards.reshape(-1, K))


def measure_in_subprocess(engine: str, path: Path) -> tuple[float, Measurement]:
    """Draw with one engine in a process of its own. Return the seconds to start, with imports, and the measurement."""
    start = time.time()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        measurement = pool.submit(measure, engine, path).result()
    return measurement.ready - start, measurement


def show(task: str, ours: float, theirs: float) -> None:
    """Print a line of the table with two times."""
    print(ROW.format(task, f"{ours:.1f} s", f"{theirs:.1f} s", f"{theirs / ours:.1f}x"))


def show_mean(figure: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
    """Print two means and by how many standard errors they differ. Responses to one prompt are independent."""
    errors = [rows.var(axis=1, ddof=1).mean() / rows.size for rows in (ours, theirs)]
    gap = (ours.mean() - theirs.mean()) / np.sqrt(sum(errors))
    print(ROW.format(f"{figure} (gap in standard errors)", f"{ours.mean():.3f}", f"{theirs.mean():.3f}", f"{gap:+.1f}"))


def main() -> None:
    """Print the table."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else bundle_path("demo")
    begin, ours = measure_in_subprocess("vllm", path)
    other_begin, theirs = measure_in_subprocess("transformers", path)
    print(ROW.format("task", "vLLM", "transformers", "ratio"))
    show("start", begin, other_begin)
    short, long = f"{PROMPTS} prompts x {K}", f"{LONG_PROMPTS} prompts x {K} behind {PREFIX:,} words"
    show(short, ours.short, theirs.short)
    show(f"{short}, with start", begin + ours.short, other_begin + theirs.short)
    show(long, ours.long, theirs.long)
    show(f"{long}, with start", begin + ours.long, other_begin + theirs.long)
    show_mean("mean reward", ours.rewards, theirs.rewards)
    show_mean("mean length in tokens", ours.lengths, theirs.lengths)
    for figure, pair in (("rewards", (ours.rewards, theirs.rewards)), ("lengths", (ours.lengths, theirs.lengths))):
        test = ks_2samp(*(rows.ravel() for rows in pair))
        distance, p = f"D = {test.statistic:.4f}", f"p = {test.pvalue:.3f}"
        print(ROW.format(f"Kolmogorov-Smirnov test of {figure}", distance, p, ""))


if __name__ == "__main__":
    main()
