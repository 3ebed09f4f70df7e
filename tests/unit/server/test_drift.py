"""Drift of served quantiles from what the bundle predicts, over engines in memory."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from infalign import Calibration
from infalign.manifest import Alignment
from server.app import ServedBundle, create_app
from server.decoding.drift import MIN_CANDIDATES, MIN_PROMPTS, WINDOW, Drift
from server.decoding.rank_laws import RankLaws, predict_ranks
from server.engines import Sampling
from server.observability.metrics import Metrics
from server.settings import Settings
from tests.fakes import LAW, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ALIGNED = Alignment(procedure="best-of-4", transformation="exp(10)", beta=0.3, measured={"kl": 0.5})
SAMPLING = Sampling.from_law(LAW, policy="fake", seed=1)
ANCHORS = np.arange(20.0)


def watched(alignment: Alignment | None = ALIGNED) -> tuple[Drift, Metrics]:
    metrics = Metrics()
    return Drift(["fake"], RankLaws({"fake": alignment}), LAW, metrics), metrics


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": "fake"})


def serve(drift: Drift, law: Any, requests: int = 64, candidates: int = 8, **other: Any) -> None:
    """Candidates whose ranks among fresh anchors follow ``law``."""
    rng = np.random.default_rng(3)
    for i in range(requests):
        ranks = rng.choice(len(law), candidates, p=law / np.sum(law))
        said = {"sampling": SAMPLING, "prompt": str(i), "calibration": Calibration(ANCHORS)} | other
        drift.observe(rewards=list(ranks - 0.5), **said)


async def test_a_policy_that_is_what_it_was_has_not_drifted() -> None:
    drift, metrics = watched()
    serve(drift, predict_ranks(ALIGNED, 20))
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift_samples") == 512
    assert value(metrics, "infalign_quantile_drift") == pytest.approx(0, abs=0.06)


async def test_a_policy_for_a_mixture_is_watched_too() -> None:
    alignment = Alignment(procedure="best-of-4+worst-of-4", transformation="optimal", beta=0.25, measured={"kl": 0.5})
    drift, metrics = watched(alignment)
    serve(drift, predict_ranks(alignment, 20))
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift") == pytest.approx(0, abs=0.06)


async def test_a_policy_that_answers_like_the_reference_has_drifted_and_the_reference_has_not() -> None:
    drift, metrics = watched()
    serve(drift, np.ones(21))
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift") == pytest.approx(0.36, abs=0.06)
    drift, metrics = watched(None)
    serve(drift, np.ones(21))
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift") == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize(
    "other",
    [
        {"sampling": replace(SAMPLING, temperature=0.5)},
        {"sampling": replace(SAMPLING, max_tokens=7)},
        {"sampling": replace(SAMPLING, stop=("x",))},
        {"sampling": replace(SAMPLING, policy="other")},
        {"calibration": Calibration(ANCHORS, "global")},
    ],
)
async def test_what_cannot_be_compared_does_not_count(other: dict[str, Any]) -> None:
    drift, metrics = watched()
    serve(drift, np.ones(21), **other)
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift_samples") is None
    assert value(metrics, "infalign_quantile_drift") is None


async def test_log_probabilities_change_nothing() -> None:
    drift, metrics = watched()
    serve(drift, np.ones(21), sampling=replace(SAMPLING, logprobs=3))
    assert value(metrics, "infalign_quantile_drift_samples") == 512


@pytest.mark.parametrize(("requests", "candidates"), [(31, 8), (MIN_PROMPTS - 1, 64)])
async def test_too_little_says_nothing(requests: int, candidates: int) -> None:
    drift, metrics = watched()
    serve(drift, np.ones(21), requests, candidates)
    await drift.refresh()
    assert (requests * candidates < MIN_CANDIDATES) or requests < MIN_PROMPTS
    assert value(metrics, "infalign_quantile_drift_samples") == requests * candidates
    assert value(metrics, "infalign_quantile_drift") is None


async def test_only_the_last_candidates_count() -> None:
    drift, metrics = watched()
    serve(drift, np.ones(21), requests=300)
    serve(drift, predict_ranks(ALIGNED, 20), requests=WINDOW // 8)
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift_samples") == WINDOW
    assert value(metrics, "infalign_quantile_drift") == pytest.approx(0, abs=0.06)


async def test_calibrations_of_different_sizes_count_together() -> None:
    drift, metrics = watched()
    serve(drift, predict_ranks(ALIGNED, 20), requests=32)
    serve(drift, predict_ranks(ALIGNED, 5), requests=32, calibration=Calibration(ANCHORS[:5]))
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift") == pytest.approx(0, abs=0.06)


async def test_a_policy_without_a_prediction_is_said_to_have_none_once(caplog: pytest.LogCaptureFixture) -> None:
    drift, metrics = watched(ALIGNED.model_copy(update={"measured": {"kl": 11.0}}))
    serve(drift, np.ones(21))
    await drift.refresh()
    await drift.refresh()
    assert value(metrics, "infalign_quantile_drift") is None
    assert [record.message for record in caplog.records if "no drift of fake" in record.message] == [
        "no drift of fake: nothing to compare it with: kl: got 11.0, accepted: nats, above 0 and at most 10"
    ]


def test_predictions_follow_what_was_measured() -> None:
    uniform = np.full(21, 1 / 21)
    measured = predict_ranks(ALIGNED, 20)
    unmeasured = predict_ranks(ALIGNED.model_copy(update={"measured": {}}), 20)
    assert np.max(np.abs(np.cumsum(measured - unmeasured))) < 0.05  # beta 0.3 is about 0.5 nats
    assert predict_ranks(None, 20) == pytest.approx(uniform)
    nothing = ALIGNED.model_copy(update={"measured": {"kl": -0.001}})
    assert predict_ranks(nothing, 20) == pytest.approx(uniform)
    assert np.sum(predict_ranks(ALIGNED.model_copy(update={"transformation": "optimal"}), 20)) == pytest.approx(1)


PROMPTS = tuple(f"question {i}" for i in range(40))
AppOf = Callable[[ServedBundle], Any]


async def drift_of(served: ServedBundle, **fields: Any) -> tuple[httpx.Response, str]:
    """What a server says of its drift after 40 requests of 8 candidates, uniform in reward."""
    rng = random.Random(0)
    app = create_app(Settings(), engines := FakeEngines(), served)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        for prompt in PROMPTS:
            body = {"messages": [{"role": "user", "content": prompt}], "n": 8, "seed": rng.randrange(1000)}
            answer = await client.post("/v1/best-of-n", json=body | fields)
        return answer, (await client.get("/metrics")).text


async def test_a_server_of_the_reference_reports_no_drift_and_one_of_the_policy_does() -> None:
    served = fake_served(prompts=PROMPTS)
    _, text = await drift_of(served)
    assert 'infalign_quantile_drift_samples{model="fake"} 320.0' in text
    policy = float(text.split('infalign_quantile_drift{model="fake"} ')[1].split()[0])
    _, text = await drift_of(replace(served, policies={"fake-reference": "standard"}))
    reference = float(text.split('infalign_quantile_drift{model="fake-reference"} ')[1].split()[0])
    assert reference < 0.1 < 0.3 < policy


async def test_a_request_with_its_own_sampling_does_not_count() -> None:
    answer, text = await drift_of(fake_served(prompts=PROMPTS), temperature=0.5)
    assert answer.status_code == 200
    assert "infalign_quantile_drift_samples{" not in text
