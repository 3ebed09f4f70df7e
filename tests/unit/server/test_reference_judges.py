"""The reference as a judge, over engines in memory: what it reads, what it costs, and how it fails."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import numpy as np
import pytest

from infalign import CalibrationTable
from infalign.reproduction import Reproduction, RewardExample
from infalign.rewards import ReferenceJudge
from server.app import ServedBundle, create_app
from server.decoding.reference_judges import ReferenceJudgment
from server.engines import EnginesDown, NextToken, RequestFailed
from server.engines.trial import RewardTrial
from server.observability.metrics import Metrics
from server.settings import Settings
from tests.fakes import KNOWN, CharacterTokenizer, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
DIGITS = tuple(map(ord, "0123456789"))
JUDGE = ReferenceJudge(CharacterTokenizer(), DIGITS, tuple(map(float, range(10))))


def read(text: str) -> list[int]:
    return list(map(ord, text))


def expected(digit: int) -> float:
    """The mean of the digits, each less likely by e for each step away from the one that was read."""
    weights = np.exp(-abs(np.arange(10) - digit))
    return float(weights @ np.arange(10) / weights.sum())


def judgment(engines: FakeEngines, *examples: int, shift: float = 0.0) -> ReferenceJudgment:
    engines.started.set()
    table = CalibrationTable(("k",), np.array([range(10)], dtype=float))
    reproduction = Reproduction.of("own", [expected(digit) + shift for digit in examples], table)
    trial = RewardTrial(reproduction, tuple(read(f"e {digit}") for digit in examples), 1e-4)
    own = ReferenceJudgment("own", JUDGE, engines, trial, Metrics())
    own.is_tried = not examples
    return own


async def test_equal_texts_are_judged_once_and_what_was_read_is_counted() -> None:
    engines = FakeEngines()
    own = judgment(engines)
    rewards = await asyncio.gather(*(own.score(read(text)) for text in ("a 3", "a 7", "a 3")))
    assert await own.score(read("a 7")) == rewards[1]
    assert rewards == pytest.approx([expected(digit) for digit in (3, 7, 3)])
    assert engines.judged == ["a 3", "a 7"]
    assert (own._tokens._value.get(), own._cached_tokens._value.get()) == (8, 10)


async def test_what_nobody_waits_for_is_given_up() -> None:
    engines = FakeEngines()
    own = judgment(engines)
    engines.hang = True
    tasks = [asyncio.create_task(own.score(read("a 3"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert not tasks[1].done()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    engines.hang = False
    assert await own.score(read("a 3")) == pytest.approx(expected(3))
    assert engines.judged == ["a 3"] * 2


async def test_it_must_give_the_bundles_rewards_and_again_after_an_outage() -> None:
    engines = FakeEngines()
    with pytest.raises(RequestFailed, match="does not give the rewards that the bundle was calibrated with"):
        await judgment(engines, 1, 2, shift=2.0).score(read("a 3"))
    own = judgment(engines, 1, 2)
    engines.judged.clear()
    await own.score(read("a 3"))
    assert engines.judged == ["e 1", "e 2", "a 3"]
    engines.fault = EnginesDown("it has died")
    with pytest.raises(EnginesDown):
        await own.score(read("a 4"))
    assert not own.is_tried


async def test_examples_that_fill_the_context_are_not_asked() -> None:
    engines = FakeEngines(context=3)
    with pytest.raises(RequestFailed, match="the engines read 2 tokens"):
        await judgment(engines, 1, 2).score(read("3"))


@pytest.mark.parametrize("logprob", [-math.inf, math.nan])
async def test_scores_without_a_probability_fail(logprob: float) -> None:
    engines = FakeEngines()
    own = judgment(engines)
    engines.next_token = NextToken((logprob,) * 10, 4)
    with pytest.raises(RequestFailed, match="the reward own: the reference as a judge gives"):
        await own.score(read("a 3"))
    assert own._failures._value.get() == 1


def served_with_judge() -> ServedBundle:
    """A bundle with a reward model and the reference as a judge."""
    weights = {"model": 1.0, "own": 1.0}
    served = fake_served(weights=weights)
    example = RewardExample(
        prompt=({"role": "user", "content": "why"},), response="e 1", rewards={"model": 1.0, "own": expected(0)}
    )
    record = served.bundle.calibration
    models = {name: {"digest": "d", "weight": weight} for name, weight in weights.items()}
    record = type(record).model_validate(record.model_dump() | {"reward_models": models})
    bundle = replace(served.bundle, examples=(example,), calibration=record)
    return replace(served, bundle=bundle, judges={"own": JUDGE})


@pytest.fixture
async def client(engines: FakeEngines) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(), engines, served_with_judge())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


async def test_candidates_are_scored_by_models_and_by_the_reference(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.next_token = NextToken(tuple(-abs(float(digit)) for digit in range(10)), 30, 20)
    messages = [{"role": "user", "content": KNOWN}]
    body = {"messages": messages, "n": 4, "seed": 1, "return_candidates": True}
    answer = (await client.post("/v1/best-of-n", json=body)).json()
    rewards = [candidate["rewards"] for candidate in answer["candidates"]]
    assert [reward["model"] for reward in rewards] == [1.0, 2.0, 3.0, 4.0]
    assert [reward["own"] for reward in rewards] == pytest.approx([expected(0)] * 4)
    assert f"[user]{KNOWN}.[assistant]answer 1." in engines.judged
    metrics = (await client.get("/metrics")).text
    assert 'infalign_judge_tokens_total{reward="own"} 150.0' in metrics
    assert 'infalign_judge_cached_tokens_total{reward="own"} 100.0' in metrics


async def test_a_judge_that_fails_makes_failed_candidates(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.next_token = NextToken((-math.inf,) * 10, 4)
    body = {"messages": [{"role": "user", "content": KNOWN}], "n": 2}
    answer = await client.post("/v1/best-of-n", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")


async def test_a_prompt_must_leave_room_for_what_the_judge_writes(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 200}], "n": 2}
    answer = await client.post("/v1/best-of-n", json=body)
    assert answer.status_code == 400
    assert "at most 199" in answer.json()["error"]["message"]
