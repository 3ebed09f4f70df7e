"""Under pressure: admission, deadlines, fewer candidates than asked for, engines that die."""

import asyncio
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.engines import EnginesDown, supervisor
from server.settings import Settings
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]


async def test_more_requests_than_are_admitted_are_told_when_to_come_back(engines: FakeEngines) -> None:
    engines.hang = True
    app = create_app(Settings(max_requests=3), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        body = {"messages": ASKED, "n": 2}
        held = [asyncio.ensure_future(client.post("/v1/best-of-n", json=body)) for _ in range(3)]
        while engines.running < 6:
            await asyncio.sleep(0)
        for endpoint, stream in (("best-of-n", False), ("chat/completions", True)):
            fields = {"messages": ASKED, "stream": stream}
            refused = await client.post(f"/v1/{endpoint}", json=fields)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "overloaded"
        assert 'infalign_rejected_total{reason="overloaded"} 2.0' in (await client.get("/metrics")).text
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        engines.hang = False
        assert (await client.post("/v1/best-of-n", json=body)).status_code == 200


async def test_a_thousand_requests_at_a_server_that_admits_64(engines: FakeEngines) -> None:
    app = create_app(Settings(max_requests=64), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        body = {"messages": ASKED, "n": 2}
        answers = await asyncio.gather(*(client.post("/v1/best-of-n", json=body) for _ in range(1000)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 64
        assert engines.running == 0
        assert (await client.post("/v1/best-of-n", json=body)).status_code == 200


async def test_the_time_of_a_request_is_bounded(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.hang = True
    late = await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 4, "timeout": 0.1})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert "0.1 s" in late.json()["error"]["message"]
    assert engines.running == 0


async def test_fewer_candidates_only_where_they_are_allowed(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.slow = {1, 3}
    body = {"messages": ASKED, "n": 5, "seed": 0, "timeout": 0.1, "return_candidates": True}
    assert (await client.post("/v1/best-of-n", json=body)).status_code == 504
    assert (await client.post("/v1/best-of-n", json=body | {"min_candidates": 4})).status_code == 504
    fewer = await client.post("/v1/best-of-n", json=body | {"min_candidates": 3})
    assert fewer.status_code == 200
    answer = fewer.json()
    assert [candidate["index"] for candidate in answer["candidates"]] == [0, 2, 4]
    assert answer["selected"][0]["seed"] == 4
    assert answer["missing"] == {"asked": 5, "reasons": {"deadline_exceeded": 2}}
    assert answer["usage"]["completion_tokens"] == 9
    engines.slow = set()
    engines.fail_scoring_after = 2
    chat = {"messages": ASKED, "best_of": 3, "seed": 0, "min_candidates": 2}
    partly = (await client.post("/v1/chat/completions", json=chat)).json()
    assert partly["missing"] == {"asked": 3, "reasons": {"not_ready": 1}}
    whole = {"messages": ASKED, "best_of": 3, "seed": 0, "min_candidates": 1}
    engines.fail_scoring_after = None
    assert "missing" not in (await client.post("/v1/chat/completions", json=whole)).json()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.001)


@pytest.mark.usefixtures("quick")
async def test_engines_that_die_are_restarted(engines: FakeEngines) -> None:
    app = create_app(Settings(), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        engines.refuse_starts = 1
        engines.dead = True
        while engines.starts < 3 or engines.dead:
            await asyncio.sleep(0.001)
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 2})).status_code == 200
        assert "infalign_engine_failures_total 1.0" in (await client.get("/metrics")).text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("on_engine_failure", ["exit", "restart"])
async def test_an_engine_that_starts_when_it_is_needed_takes_no_other_with_it(
    engines: FakeEngines, on_engine_failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[BaseException] = []
    app = create_app(Settings(on_engine_failure=on_engine_failure), engines, fake_served(), failures.append)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        failure = EnginesDown("the scorer has died")
        engines.late_failures = [failure]
        while "the scorer has died" not in caplog.text:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert (await client.get("/ready")).status_code == 200
        assert "infalign_engine_failures_total 1.0" in (await client.get("/metrics")).text
    assert engines.starts == 1
    restarts = on_engine_failure == "restart"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["the scorer has died" + ("; it starts again when it is needed" if restarts else "")]
    assert failures == ([] if restarts else [failure])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("on_engine_failure", "starts"), [("exit", 1), ("restart", 1 + supervisor.ATTEMPTS)])
async def test_the_server_ends_where_engines_stay_dead(
    engines: FakeEngines, on_engine_failure: Any, starts: int
) -> None:
    failures: list[BaseException] = []
    app = create_app(Settings(on_engine_failure=on_engine_failure), engines, fake_served(), failures.append)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        engines.refuse_starts = 100
        engines.dead = True
        while not failures:
            await asyncio.sleep(0.001)
        assert engines.starts == starts
        assert (await client.get("/ready")).status_code == 503
