"""What it costs to read the beginnings of responses with the prefix scorer.

    python -m benchmarks.prefixes [BUNDLE]      through vLLM (default: the demo)

The benchmark starts the engine of the prefix scorer alone. Some responses to one prompt grow side by side, and each is
read after every step of tokens. The tokens are random, since only their number counts. The benchmark prints the time of
a read, and how many of its tokens were not read again, because the prefix cache had them.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import click
import numpy as np

from infalign import read_bundle
from infalign.errors import InvalidValue
from infalign.home import bundle_path
from server.engines.engine import Engine
from server.engines.environment import prepare_environment
from server.engines.plan import Plan
from server.engines.tuning import set_threads
from server.settings import Settings

CONCURRENT = (1, 8, 16)
"""How many responses grow side by side."""
PROMPT, RESPONSE, STEP = 100, 128, 8
"""Tokens of the prompt, tokens of a whole response, and tokens between two reads of it."""
PROMPTS = 8
"""Prompts of each measurement, one after another."""


class Read(NamedTuple):
    """One read of a beginning."""

    seconds: float
    tokens: int
    """Tokens of the prompt and of the response so far."""
    cached: int
    """Tokens of these that the prefix cache had."""


async def read(engine: Engine, tokens: list[int]) -> Read:
    """Read the beginning of a response."""
    from vllm.inputs import tokens_input
    from vllm.pooling_params import PoolingParams

    start = time.perf_counter()
    async with engine.call() as llm:
        raw = PoolingParams(task="classify", use_activation=False)
        async for output in llm.encode(tokens_input(tokens), raw, uuid4().hex):
            cached = output.num_cached_tokens
    return Read(time.perf_counter() - start, len(tokens), cached)


async def read_growing(engine: Engine, prompt: list[int], response: list[int]) -> list[Read]:
    """Read a response after every step of tokens."""
    return [await read(engine, [*prompt, *response[:end]]) for end in range(STEP, len(response) + 1, STEP)]


async def measure(engine: Engine, concurrent: int, vocabulary: int, rng: np.random.Generator) -> list[Read]:
    """Let responses to several prompts grow, ``concurrent`` at a time."""
    reads: list[Read] = []
    for _ in range(PROMPTS):
        prompt, *responses = (
            rng.integers(2, vocabulary, size).tolist() for size in (PROMPT, *(RESPONSE,) * concurrent)
        )
        await read(engine, prompt)
        rows = await asyncio.gather(*(read_growing(engine, prompt, response) for response in responses))
        reads += [one for row in rows for one in row]
    return reads


def describe(concurrent: int, reads: Sequence[Read], seconds: float) -> str:
    """Write one row of the table."""
    milliseconds = np.array([one.seconds for one in reads]) * 1000
    fresh = np.mean([one.tokens - one.cached for one in reads])
    cells = (
        concurrent,
        f"{1000 * seconds / len(reads):.1f}",
        *(f"{value:.1f}" for value in np.percentile(milliseconds, [50, 99])),
        f"{np.mean([one.tokens for one in reads]):.0f}",
        f"{fresh:.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


async def run(engine: Engine, vocabulary: int) -> None:
    """Print a row for each number of responses."""
    rng = np.random.default_rng(0)
    await measure(engine, 1, vocabulary, rng)  # warm up
    print("| side by side | ms per read | ms until it is there, p50 | p99 | tokens | of them read |")
    print("|---|---|---|---|---|---|")
    for concurrent in CONCURRENT:
        start = time.perf_counter()
        reads = await measure(engine, concurrent, vocabulary, rng)
        print(describe(concurrent, reads, time.perf_counter() - start), flush=True)


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
def main(bundle: Path | None) -> None:
    """Print what a read takes, for several numbers of responses that grow side by side."""
    content = read_bundle(bundle or bundle_path("demo"))
    if content.scorer is None:
        raise InvalidValue("BUNDLE", str(bundle), "a bundle with a prefix scorer")
    prepare_environment()
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import available_cpu_count

    settings, is_cpu = Settings(), current_platform.is_cpu()
    if is_cpu:
        set_threads(settings, available_cpu_count())
    launch = Plan(content.policy().directory, content.reference, (), settings, content.prefix_scorer).prepare_scorer(
        is_cpu
    )
    start = time.perf_counter()
    engine = launch.run(settings.engine_silence)
    print(f"the engine starts in {time.perf_counter() - start:.1f} s")
    vocabulary = launch.config.model_config.get_vocab_size()
    try:
        asyncio.run(run(engine, vocabulary))
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
