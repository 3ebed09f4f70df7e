"""Calibration on demand over engines in memory, whose reference says its seed and is rewarded with its last digit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from infalign import Combination
from infalign.manifest import SamplingLaw
from infalign.templates import Rendering, prompt_key
from server.app import ServedBundle, create_app
from server.decoding.calibrator import Calibrator, calibration_digest
from server.decoding.engine_client import EngineClient
from server.decoding.reader import Conversation
from server.decoding.store import Store
from server.engines.turns import TurnParsers
from server.observability.metrics import Metrics
from server.settings import Settings
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
K, LAW = 16, SamplingLaw(temperature=0.5, top_p=0.9, top_k=7, max_tokens=11)
ASK = {"prompt": "else", "n": 1, "seed": 5, "calibrate": True}
CALIBRATIONS = "/v1/calibrations"


def served_with(weights: dict[str, float] | None = None, **record: Any) -> ServedBundle:
    """A bundle that calibrates with ``K`` draws under ``LAW``."""
    served = fake_served(range(K), weights)
    changed = served.bundle.calibration.model_copy(update={"sampling": LAW, **record})
    return replace(served, bundle=replace(served.bundle, calibration=changed))


@asynccontextmanager
async def serve(
    engines: FakeEngines, served: ServedBundle | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(**settings), engines, served or served_with())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def digits(prompt: str) -> list[int]:
    """Rewards of the reference's draws for ``prompt``."""
    first = int(prompt_key(Rendering((prompt,)))[:15], 16)
    return [(first + i) % 10 for i in range(K)]


def mid_rank_quantile(reward: float, among: list[int]) -> float:
    rank = sum(other < reward for other in among) + sum(other == reward for other in among) / 2
    return (rank + 0.5) / (len(among) + 1)


async def test_k_reference_draws_under_the_calibrations_own_law_give_the_prompts_quantiles(
    engines: FakeEngines,
) -> None:
    async with serve(engines) as client:
        pooled = (await client.post("/v1/best-of-n", json=ASK | {"calibrate": False})).json()
        answer = (await client.post("/v1/best-of-n", json=ASK | {"temperature": 0, "max_tokens": 3})).json()
    assert pooled["calibration"] == {"scope": "global", "samples": K}
    assert answer["calibration"] == {"scope": "prompt", "samples": K}
    laws = {(s.temperature, s.top_p, s.top_k, s.max_tokens, s.min_p, s.stop) for s in engines.reference_draws}
    assert laws == {(0.5, 0.9, 7, 11, 0.0, ())}
    first = int(prompt_key(Rendering(("else",)))[:15], 16)
    assert sorted(s.seed for s in engines.reference_draws) == [first + i for i in range(K)]
    selected = answer["selected"][0]
    assert selected["reward"] == pooled["selected"][0]["reward"] == 5
    assert selected["quantile"] == pytest.approx(mid_rank_quantile(5, digits("else")))
    assert selected["quantile"] != pytest.approx(pooled["selected"][0]["quantile"])
    assert [s.temperature for s in engines.drawn if s.policy] == [1.0, 0]


async def test_every_endpoint_can_ask_for_it(engines: FakeEngines) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("best-of-n", {"prompt": "a"}),
        ("worst-of-n", {"messages": [{"role": "user", "content": "b"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "c"}], "best_of": 2}),
        ("completions", {"prompt": "d"}),
        ("rewards", {"prompt": "e", "responses": ["7"]}),
    ]
    async with serve(engines) as client:
        for number, (endpoint, body) in enumerate(cases, 1):
            answer = (await client.post(f"/v1/{endpoint}", json=body | {"calibrate": True})).json()
            assert answer["calibration"] == {"scope": "prompt", "samples": K}, endpoint
            assert len(engines.reference_draws) == number * K


async def test_a_prompt_is_drawn_once_and_then_known_to_all(engines: FakeEngines) -> None:
    async with serve(engines) as client:
        first = (await client.post(CALIBRATIONS, json={"prompt": "else"})).json()
        again = (await client.post(CALIBRATIONS, json={"prompt": "else"})).json()
        found = (await client.post("/v1/rewards", json={"prompt": "else", "responses": ["3"]})).json()
        text = (await client.get("/metrics")).text
    assert len(engines.reference_draws) == K
    assert (first["cached"], again["cached"]) == (False, True)
    assert first | {"cached": True} == again
    assert found["calibration"]["scope"] == "prompt"
    assert found["rewards"][0]["quantile"] == pytest.approx(mid_rank_quantile(3, digits("else")))
    for source, count in (("drawn", 1), ("cache", 2)):
        assert f'infalign_calibration_lookups_total{{scope="prompt",source="{source}"}} {count}.0' in text
    assert "infalign_calibration_seconds_count 1.0" in text
    assert "infalign_calibrations_in_progress 0.0" in text
    assert "infalign_calibration_store_errors_total 0.0" in text
    assert "infalign_calibration_store_bytes 0.0" not in text


async def test_the_answer_describes_the_calibration(engines: FakeEngines) -> None:
    async with serve(engines) as client:
        drawn = (await client.post(CALIBRATIONS, json={"prompt": "else", "model": "fake"})).json()
        bundled = (await client.post(CALIBRATIONS, json={"messages": [{"role": "user", "content": KNOWN}]})).json()
    percentiles = np.percentile(digits("else"), [5, 25, 50, 75, 95])
    rewards = drawn.pop("reference_rewards")
    assert list(rewards) == ["reward"]
    assert list(rewards["reward"]) == ["5", "25", "50", "75", "95"]
    assert list(rewards["reward"].values()) == pytest.approx(list(percentiles))
    assert drawn == {
        "object": "calibration",
        "model": "fake",
        "prompt_key": prompt_key(Rendering(("else",))),
        "scope": "prompt",
        "samples": K,
        "cached": False,
    }
    assert bundled["cached"]
    assert bundled["reference_rewards"]["reward"]["50"] == pytest.approx((K - 1) / 2)
    assert len(engines.reference_draws) == K


async def test_several_reward_models_are_combined_as_in_the_bundle(engines: FakeEngines) -> None:
    weights = {"helpful": 3.0, "terse": 1.0}
    body = {"prompt": "else", "responses": ["7", "2"], "calibrate": True}
    async with serve(engines, served_with(weights)) as client:
        fresh = (await client.post("/v1/rewards", json=body)).json()
        shown = (await client.post(CALIBRATIONS, json={"prompt": "else"})).json()
    async with serve(FakeEngines(), served_with(weights)) as client:
        kept = (await client.post("/v1/rewards", json=body)).json()
    assert fresh == kept
    assert fresh["calibration"] == {"scope": "prompt", "samples": K}
    drawn = digits("else")
    own = served_with(weights).bundle.combination
    helpful, terse = (
        replace(table, keys=("k",), rewards=np.array([rewards], dtype=float))
        for table, rewards in zip(own.tables, (drawn, [9 - digit for digit in drawn]), strict=True)
    )
    combination = Combination((helpful, terse), (3.0, 1.0))
    combined = combination.combine(["k", "k"], [[7, 2], [2, 7]])
    assert [row["reward"] for row in fresh["rewards"]] == pytest.approx(list(combined))
    expected = combination.table.lookup("k").quantile(combined)
    assert [row["quantile"] for row in fresh["rewards"]] == pytest.approx(list(expected))
    assert shown["reference_rewards"]["helpful"]["50"] == pytest.approx(np.median(drawn))
    assert shown["reference_rewards"]["terse"]["50"] == pytest.approx(9 - np.median(drawn))


async def test_a_restart_remembers_and_another_bundle_does_not(tmp_path: Path) -> None:
    kept = {"calibration_store": tmp_path / "kept.sqlite"}
    async with serve(FakeEngines(), **kept) as client:
        first = (await client.post("/v1/best-of-n", json=ASK)).json()
    async with serve(engines := FakeEngines(), **kept) as client:
        second = (await client.post("/v1/best-of-n", json=ASK | {"calibrate": False})).json()
    assert engines.reference_draws == []
    assert second["calibration"]["scope"] == "prompt"
    assert second["selected"] == first["selected"]
    others: list[dict[str, Any]] = [
        {"reference": "another"},
        {"reward_model": "another"},
        {"chat_template": "another"},
        {"sampling": SamplingLaw(max_tokens=12)},
        {"samples": K + 1},
        {"resolution": 1e-3},
    ]
    for record in others:
        async with serve(engines := FakeEngines(), served_with(**record), **kept) as client:
            found = (await client.post("/v1/best-of-n", json=ASK | {"calibrate": False})).json()
            assert found["calibration"]["scope"] == "global", record
            await client.post("/v1/best-of-n", json=ASK)
        assert len(engines.reference_draws) == record.get("samples", K), record


async def test_what_does_not_change_rewards_does_not_change_the_context() -> None:
    record = served_with().bundle.calibration
    assert calibration_digest(record) == calibration_digest(
        record.model_copy(update={"prompts": 7, "estimator": "rank"})
    )


async def test_twenty_who_ask_at_once_share_the_draws(engines: FakeEngines) -> None:
    async with serve(engines) as client:
        answers = await asyncio.gather(*(client.post("/v1/best-of-n", json=ASK) for _ in range(20)))
    assert len({answer.text.split('"selected"')[1].split('"usage"')[0] for answer in answers}) == 1
    assert len(engines.reference_draws) == K


async def test_draws_of_all_calibrations_keep_to_the_limit(engines: FakeEngines) -> None:
    async with serve(engines, calibration_concurrency=3) as client:
        engines.hang_reference = True
        waiting = [asyncio.ensure_future(client.post(CALIBRATIONS, json={"prompt": f"p{i}"})) for i in range(5)]
        await until(lambda: engines.running == 3)
        for _ in range(200):
            await asyncio.sleep(0)
        assert engines.running == 3
        await cancel(*waiting)
        assert engines.running == 0


async def cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def calibrator(engines: FakeEngines, path: Path) -> AsyncIterator[Calibrator]:
    await engines.start()
    served, metrics = served_with(), Metrics()
    client = EngineClient(engines, served.tokenizers, metrics, TurnParsers(None))
    store = Store(path, 1 << 20, "context", (1, K), metrics)
    calibrator = Calibrator(served.bundle, client, store, 4)
    yield calibrator
    await calibrator.close()


class Stepwise(FakeEngines):
    """Its draws end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def generate(self, prompt: Any, sampling: Any, listen: Any = None) -> Any:
        self.running += 1
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return await super().generate(prompt, sampling, listen)


async def test_one_of_two_waiters_goes_away_and_the_other_gets_it(tmp_path: Path) -> None:
    engines = Stepwise()
    async with calibrator(engines, tmp_path / "store") as calibrations:
        prompt = await EngineClient(engines, served_with().tokenizers, Metrics(), TurnParsers(None)).reader.read(
            Conversation(prompt="else"), 0
        )
        first, second = (asyncio.ensure_future(calibrations.calibrate(prompt)) for _ in range(2))
        await until(lambda: engines.running == 1)
        await cancel(first)
        assert first.cancelled()
        assert engines.running == 1
        engines.go.set()
        found = await second
        assert found.source == "drawn"
        assert len(engines.drawn) == K


async def test_the_draws_end_when_nobody_waits_and_can_begin_anew(tmp_path: Path) -> None:
    engines = Stepwise()
    async with calibrator(engines, tmp_path / "store") as calibrations:
        prompt = await EngineClient(engines, served_with().tokenizers, Metrics(), TurnParsers(None)).reader.read(
            Conversation(prompt="else"), 0
        )
        waiting = [asyncio.ensure_future(calibrations.calibrate(prompt)) for _ in range(3)]
        await until(lambda: engines.running == 1)
        await cancel(*waiting)
        assert (engines.running, engines.drawn) == (0, [])
        assert (await calibrations.find(prompt)).source == "pooled"
        engines.go.set()
        assert (await calibrations.calibrate(prompt)).source == "drawn"
        assert (await calibrations.find(prompt)).source == "cache"


async def test_a_deadline_ends_the_draws_only_of_those_who_wait_alone(engines: FakeEngines) -> None:
    short = ASK | {"timeout": 0.1}
    async with serve(engines) as client:
        engines.hang_reference = True
        alone = await client.post("/v1/best-of-n", json=short)
        assert (alone.status_code, alone.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert engines.running == 0
        patient = asyncio.ensure_future(client.post("/v1/best-of-n", json=ASK))
        await until(lambda: engines.running == 1)
        hurried = await client.post("/v1/best-of-n", json=short)
        assert hurried.status_code == 504
        assert engines.running == 1
        await cancel(patient)


async def test_a_calibration_asked_for_alone_has_the_servers_deadline(engines: FakeEngines) -> None:
    engines.hang_reference = True
    async with serve(engines, deadline=0.05) as client:
        answer = await client.post(CALIBRATIONS, json={"prompt": "else"})
    assert (answer.status_code, engines.running) == (504, 0)


async def test_other_traffic_is_answered_while_a_calibration_hangs(engines: FakeEngines) -> None:
    async with serve(engines) as client:
        engines.hang_reference = True
        hanging = asyncio.ensure_future(client.post("/v1/best-of-n", json=ASK))
        await until(lambda: len(engines.reference_draws) == 1)
        same = await client.post("/v1/best-of-n", json=ASK | {"calibrate": False})
        known = await client.post(CALIBRATIONS, json={"messages": [{"role": "user", "content": KNOWN}]})
        assert (same.status_code, known.status_code) == (200, 200)
        assert same.json()["calibration"]["scope"] == "global"
        assert "infalign_calibrations_in_progress 1.0" in (await client.get("/metrics")).text
        assert not hanging.done()
        await cancel(hanging)


async def test_engines_that_die_meanwhile_answer_all_who_wait_with_503(engines: FakeEngines) -> None:
    async with serve(engines) as client:
        engines.fail_scoring_after = 5
        answers = await asyncio.gather(*(client.post(CALIBRATIONS, json={"prompt": "else"}) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [503] * 3
        assert engines.running == 0
        engines.fail_scoring_after = None
        assert (await client.post(CALIBRATIONS, json={"prompt": "else"})).json()["cached"] is False


async def test_a_prompt_that_fits_only_shorter_responses_is_refused(engines: FakeEngines) -> None:
    async with serve(engines) as client:
        body = {"prompt": "x" * 190, "n": 1, "max_tokens": 5, "seed": 5, "calibrate": True}
        refused = await client.post("/v1/best-of-n", json=body)
        assert (await client.post("/v1/best-of-n", json=body | {"calibrate": False})).status_code == 200
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "prompt", "context_length_exceeded")
    assert "11 for the response" in error["message"]
    assert "the bundle's max_tokens" in error["message"]


async def test_a_store_that_cannot_be_used_fails_no_request(engines: FakeEngines, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(b"no database" * 1000)
    async with serve(engines, calibration_store=path) as client:
        first = (await client.post(CALIBRATIONS, json={"prompt": "else"})).json()
        again = (await client.post(CALIBRATIONS, json={"prompt": "else"})).json()
        text = (await client.get("/metrics")).text
    assert (first["cached"], again["cached"]) == (False, True)
    assert "infalign_calibration_store_errors_total 0.0" not in text
    assert path.read_bytes() == b"no database" * 1000


async def test_rewards_that_are_no_numbers_are_not_kept(engines: FakeEngines, tmp_path: Path) -> None:
    async def broken(tokens: Any) -> list[float]:
        return [float("nan")]

    async with calibrator(engines, tmp_path / "store") as calibrations:
        prompt = await EngineClient(engines, served_with().tokenizers, Metrics(), TurnParsers(None)).reader.read(
            Conversation(prompt="else"), 0
        )
        engines.score = broken  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="finite"):
            await calibrations.calibrate(prompt)
        assert (await calibrations.find(prompt)).source == "pooled"
