"""Rewards that no engine computes: batches, failures, trials, and what clients see of them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from infalign import CalibrationTable
from infalign.reproduction import Reproduction, RewardExample
from infalign.rewards import OpenReward, RewardFailed
from infalign.templates import Message
from server.app import ServedBundle, create_app
from server.decoding.external_rewards import ExternalReward
from server.engines import RequestFailed
from server.engines.trial import RewardTrial
from server.observability.metrics import Metrics
from server.settings import Settings
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
PROMPT = [{"role": "user", "content": "why"}]


class Scorer(OpenReward):
    """Gives the last digit, and fails at a response that says so, or altogether."""

    batch = 4

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fault: Exception | None = None
        self.shift = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        self.batches.append(list(responses))
        self.tokens, self.cached_tokens = self.tokens + 10, self.cached_tokens + 4  # as if it were a judge
        assert self.gate.wait(10)
        if self.fault:
            raise self.fault
        if "bad" in responses:
            raise RewardFailed("it cannot read this")
        return [float(response[-1]) + self.shift for response in responses]

    def close(self) -> None:
        self.closed = True


def external(scorer: Scorer, examples: Sequence[str] = ()) -> ExternalReward:
    table = CalibrationTable(("k",), np.array([range(10)], dtype=float))
    reproduction = Reproduction.of("it", [float(text[-1]) for text in examples], table)
    return ExternalReward(
        "it", scorer, RewardTrial(reproduction, (), 1e-4), [(PROMPT, text) for text in examples], Metrics()
    )


async def test_what_waits_while_a_call_runs_is_one_batch() -> None:
    scorer = Scorer()
    reward = external(scorer)
    scorer.gate.clear()
    tasks = [asyncio.create_task(reward.score((PROMPT, f"a {i}"))) for i in range(6)]
    await asyncio.sleep(0.05)
    tasks[5].cancel()  # nobody waits for it any more
    scorer.gate.set()
    assert await asyncio.gather(*tasks[:5]) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert scorer.batches == [["a 0", "a 1", "a 2", "a 3"], ["a 4"]]


async def test_a_response_that_fails_takes_no_other_with_it() -> None:
    scorer = Scorer()
    reward = external(scorer)
    responses = ["a 1", "bad", "a 3"]
    results = await asyncio.gather(*(reward.score((PROMPT, text)) for text in responses), return_exceptions=True)
    assert [results[0], results[2]] == [1.0, 3.0]
    assert isinstance(results[1], RequestFailed)
    assert scorer.batches == [responses, ["a 1"], ["bad"], ["a 3"]]


async def test_a_reward_that_is_down_fails_all_that_wait_and_is_tried_when_it_is_back() -> None:
    scorer = Scorer()
    reward = external(scorer, ["e 1", "e 2"])
    assert await reward.score((PROMPT, "a 5")) == 5.0
    assert await reward.score((PROMPT, "a 6")) == 6.0
    scorer.fault = RewardFailed("it cannot be reached", is_of_content=False)
    results = await asyncio.gather(*(reward.score((PROMPT, "a 7")) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["it cannot be reached"] * 3
    scorer.fault, scorer.batches = None, []
    assert await reward.score((PROMPT, "a 8")) == 8.0
    assert scorer.batches == [["e 1", "e 2"], ["a 8"]]


async def test_a_bug_of_a_reward_fails_and_does_not_hang(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer()
    scorer.fault = LookupError("secret")
    with pytest.raises(RequestFailed, match=r"the reward it failed \(LookupError\)"):
        await external(scorer).score((PROMPT, "a 1"))


async def test_a_reward_that_gives_other_rewards_than_the_bundle_has_scores_nothing() -> None:
    scorer = Scorer()
    scorer.shift = 2.0
    reward = external(scorer, ["e 1", "e 2"])
    for _ in range(2):
        with pytest.raises(RequestFailed, match="does not give the rewards that the bundle was calibrated with"):
            await reward.score((PROMPT, "a 3"))
    scorer.shift = 0.0
    assert await reward.score((PROMPT, "a 3")) == 3.0


def served_with(scorer: Scorer, weights: dict[str, float]) -> ServedBundle:
    """A bundle whose reward ``function`` is computed by ``scorer``, and every other one by the engines."""
    served = fake_served(weights=weights)
    examples = (RewardExample(prompt=tuple(PROMPT), response="e 1", rewards=dict.fromkeys(weights, 1.0)),)
    tokenizers = {name: tokenizer for name, tokenizer in served.tokenizers[1].items() if name != "function"}
    record = served.bundle.calibration
    if len(weights) > 1:
        models = {name: {"digest": "d", "weight": weight} for name, weight in weights.items()}
        record = type(record).model_validate(record.model_dump() | {"reward_models": models})
    return replace(
        served,
        bundle=replace(served.bundle, examples=examples, calibration=record),
        tokenizers=(served.tokenizers[0], tokenizers),
        rewards={"function" if len(weights) > 1 else "reward": scorer},
    )


@pytest.fixture(params=[{"reward": 1.0}, {"function": 1.0, "model": 1.0}], ids=["alone", "beside a model"])
async def running(request: Any, engines: FakeEngines) -> AsyncIterator[tuple[httpx.AsyncClient, Scorer]]:
    scorer = Scorer()
    served = served_with(scorer, request.param)
    if len(request.param) == 1:
        served = replace(served, tokenizers=(served.tokenizers[0], {}))
    app = create_app(Settings(), engines, served)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client, scorer
    assert scorer.closed


async def test_candidates_are_ranked_by_a_reward_that_no_engine_computes(
    running: tuple[httpx.AsyncClient, Scorer],
) -> None:
    client, _ = running
    messages = [{"role": "user", "content": KNOWN}]
    body = {"messages": messages, "n": 4, "seed": 1, "return_candidates": True}
    answer = (await client.post("/v1/best-of-n", json=body)).json()
    assert [candidate["text"][-1] for candidate in answer["candidates"]] == ["1", "2", "3", "4"]
    rewards = [candidate.get("rewards") or {"function": candidate["reward"]} for candidate in answer["candidates"]]
    assert [reward["function"] for reward in rewards] == [1.0, 2.0, 3.0, 4.0]
    raw = await client.post("/v1/completions", json={"prompt": KNOWN, "best_of": 2, "seed": 1})
    assert raw.status_code == 200
    scored = (await client.post("/v1/rewards", json={"messages": messages, "responses": ["a 7"]})).json()
    assert scored["rewards"][0]["reward"] is not None
    calibrated = await client.post("/v1/calibrations", json={"messages": [{"role": "user", "content": "new"}]})
    assert calibrated.status_code == 200


async def test_a_reward_that_fails_makes_failed_candidates(running: tuple[httpx.AsyncClient, Scorer]) -> None:
    client, scorer = running
    body = {"messages": [{"role": "user", "content": KNOWN}], "n": 4}
    scorer.fault = RewardFailed("the service cannot be reached", is_of_content=False)
    answer = await client.post("/v1/best-of-n", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")
    metrics = (await client.get("/metrics")).text
    (failures,) = [line for line in metrics.splitlines() if line.startswith("infalign_reward_failures_total{")]
    (tokens,) = [line for line in metrics.splitlines() if line.startswith("infalign_judge_tokens_total{")]
    (cached,) = [line for line in metrics.splitlines() if line.startswith("infalign_judge_cached_tokens_total{")]
    assert 0 < float(cached.rpartition(" ")[2]) < float(tokens.rpartition(" ")[2])
    assert float(failures.rpartition(" ")[2]) > 0
    assert float(tokens.rpartition(" ")[2]) > 0
    scorer.fault = None
    assert (await client.post("/v1/best-of-n", json=body)).status_code == 200
