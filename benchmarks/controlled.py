"""Controlled decoding against best-of-n with as many tokens drawn, on a running server.

    python -m benchmarks.controlled PROMPTS [--url URL] [--limit 60]

PROMPTS is ``prompts.jsonl`` of a run's stage ``data``; its test prompts are asked. For each of them, 64 candidates are
drawn once. They say, without bias, what best-of-n gives for every n. Then four answers are drawn by each
``controlled-KxM``. n is chosen so that best-of-n draws as many tokens on average, by mixing two neighbours. Prompts
are calibrated first. Intervals are 95% bootstrap intervals over prompts, and differences are paired by prompt.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from infalign import BestOfN, Controlled, over_prompts
from infalign.arrays import Floats

POOL, ANSWERS = 64, 4
SETTINGS = tuple(Controlled(k, block) for k in (4, 2) for block in (4, 16, 64, 8))
COLUMNS = (
    "procedure",
    "tokens",
    "= best-of-n",
    "quantile",
    "best-of-n",
    "difference",
    "win rate",
    "KL at most",
    "KL, best-of-n",
)


@dataclass(frozen=True)
class Pool:
    """Candidates of one prompt, by rising reward."""

    rewards: Floats
    quantiles: Floats
    tokens: float
    """Mean tokens of a candidate."""

    def quantile(self, weights: Floats) -> float:
        """Return the expected quantile of a selection."""
        return float(self.quantiles @ weights)

    def wins(self, rewards: Floats, weights: Floats) -> float:
        """Return how often answers of given rewards beat a selection; a tie counts one half."""
        beaten = (rewards[:, None] > self.rewards) + 0.5 * (rewards[:, None] == self.rewards)
        return float(np.mean(beaten @ weights))


@dataclass(frozen=True)
class Drawn:
    """Answers of one prompt by controlled decoding."""

    rewards: Floats
    quantiles: Floats
    tokens: float
    """Tokens drawn for an answer."""
    blocks: float
    """Blocks of an answer."""


def order_weights(n: float) -> Floats:
    """Return the weights of best-of-n for a pool. For a fraction, they are mixed of the two numbers around it."""
    below, share = int(n), n - int(n)
    return (1 - share) * BestOfN(below).order_weights(POOL) + share * BestOfN(below + 1).order_weights(POOL)


def read_prompts(path: Path, limit: int) -> list[Any]:
    """Read the messages of test prompts, evenly over the file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows if row["split"] == "test"]
    return prompts[:: max(1, len(prompts) // limit)][:limit]


def ask(client: httpx.Client, path: str, **body: Any) -> Any:
    """Post a request, and return the answer."""
    answer = client.post(path, json={"calibrate": True, **body})
    answer.raise_for_status()
    return answer.json()


def draw_pool(client: httpx.Client, messages: Any, seed: int) -> Pool:
    """Draw the candidates of a prompt."""
    answer = ask(client, "/v1/best-of-n", messages=messages, n=POOL, seed=seed, return_candidates=True)
    candidates = sorted(answer["candidates"], key=lambda candidate: candidate["reward"])
    return Pool(
        np.array([candidate["reward"] for candidate in candidates]),
        np.array([candidate["quantile"] for candidate in candidates]),
        answer["usage"]["completion_tokens"] / POOL,
    )


def draw_controlled(client: httpx.Client, messages: Any, seed: int, procedure: Controlled) -> Drawn:
    """Draw answers to a prompt."""
    fields = {"k": procedure.k, "block": procedure.block, "n": ANSWERS, "seed": seed}
    answer = ask(client, "/v1/controlled", messages=messages, **fields)
    return Drawn(
        np.array([one["reward"] for one in answer["selected"]]),
        np.array([one["quantile"] for one in answer["selected"]]),
        answer["controlled"]["drawn_tokens"] / ANSWERS,
        answer["controlled"]["blocks"] / ANSWERS,
    )


def compare(procedure: Controlled, drawn: Sequence[Drawn], pools: Sequence[Pool]) -> Iterator[str]:
    """Yield the cells of a row."""
    tokens = float(np.mean([one.tokens for one in drawn]))
    n = max(1.0, tokens / float(np.mean([pool.tokens for pool in pools])))
    weights = order_weights(n)
    quantiles = np.array([one.quantiles.mean() for one in drawn])
    others = np.array([pool.quantile(weights) for pool in pools])
    wins = np.array([pool.wins(one.rewards, weights) for one, pool in zip(drawn, pools, strict=True)])
    yield str(procedure)
    yield f"{tokens:.0f}"
    yield f"{n:.1f}"
    yield f"{quantiles.mean():.3f}"
    yield f"{others.mean():.3f}"
    yield str(over_prompts(quantiles - others))
    yield str(over_prompts(wins))
    yield f"{procedure.kl_bound(float(np.mean([one.blocks for one in drawn]))):.2f}"
    yield f"{np.log(n) - (n - 1) / n:.2f}"


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the server.")
@click.option("--limit", default=60, show_default=True, help="Number of prompts.")
def main(prompts: Path, url: str, limit: int) -> None:
    """Print the table."""
    asked = read_prompts(prompts, limit)
    with httpx.Client(base_url=url, timeout=600) as client:
        pools = [draw_pool(client, messages, 1000 * i) for i, messages in enumerate(asked)]
        for n in (1, 2, 4, 8, 16):
            weights = order_weights(n)
            print(f"best-of-{n}: {np.mean([pool.quantile(weights) for pool in pools]):.3f}", flush=True)
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
        for procedure in SETTINGS:
            drawn = [draw_controlled(client, messages, 7000 + 1000 * i, procedure) for i, messages in enumerate(asked)]
            print("| " + " | ".join(compare(procedure, drawn, pools)) + " |", flush=True)


if __name__ == "__main__":
    main()
