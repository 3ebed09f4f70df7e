"""Calibration must be true: the reference, served in the policy's place, has uniform quantiles."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from scipy.stats import kstest, t

from infalign import BestOfN, Bundle, Procedure, WorstOfN
from tests.integration.conftest import serving
from training.data import corpus

PROMPTS, N = 288, 8


@pytest.fixture(scope="module")
def quantiles(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[np.ndarray]:
    """(PROMPTS, N) quantiles of fresh draws from the reference on calibrated prompts."""
    log = tmp_path_factory.mktemp("reference") / "log"
    with serving(log, str(bundle.path), "--reference") as url:
        yield asyncio.run(draw(url))


async def draw(url: str) -> np.ndarray:
    gate = asyncio.Semaphore(8)
    asked = corpus.prompts()[:: len(corpus.prompts()) // PROMPTS]

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def one(index: int, text: str) -> list[float]:
            async with gate:
                body: dict[str, Any] = {
                    "model": "demo-reference",
                    "messages": [{"role": "user", "content": text}],
                    "n": N,
                    "seed": 1_000_000 + index * N,
                    "return_candidates": True,
                }
                answer = (await client.post("/v1/best-of-n", json=body)).json()
                assert answer["calibration"]["scope"] == "prompt"
                return [candidate["quantile"] for candidate in answer["candidates"]]

        rows = await asyncio.gather(*(one(index, prompt.text) for index, prompt in enumerate(asked)))
        return np.array(rows)


def test_quantiles_are_uniform(quantiles: np.ndarray) -> None:
    """With K anchors a quantile falls on (r + 1/2) / (K + 1), so the statistic has a floor of about 1 / 2K."""
    assert quantiles.size >= 2000
    result = kstest(quantiles.ravel(), "uniform")
    print(f"\nKolmogorov-Smirnov over {quantiles.size} draws: D = {result.statistic:.4f}, p = {result.pvalue:.3f}")
    assert result.pvalue > 0.01


@pytest.mark.parametrize("procedure", [BestOfN(N), WorstOfN(N)], ids=str)
def test_the_mean_selected_quantile_is_what_theory_says(
    quantiles: np.ndarray, bundle: Bundle, procedure: Procedure
) -> None:
    """Draws of one prompt share its anchors, so that the prompt is the unit: one selected quantile for each.

    The estimator (r + 1/2) / (K + 1) shrinks by a known amount at finite K; undone, its mean is N/(N+1).
    """
    k, a = bundle.calibration.samples, bundle.calibration.estimator.prior
    best = isinstance(procedure, BestOfN)
    selected = (quantiles.max(axis=1) if best else quantiles.min(axis=1)) * (k + 2 * a) / k - a / k
    half = t.ppf(0.995, len(selected) - 1) * selected.std(ddof=1) / np.sqrt(len(selected))
    print(
        f"\n{procedure}: mean selected quantile {selected.mean():.4f} ± {half:.4f} (99%), "
        f"theory {procedure.expected_quantile:.4f}"
    )
    assert abs(selected.mean() - procedure.expected_quantile) < half
