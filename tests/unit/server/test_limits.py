"""What one key may ask for, and how large a request may be."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.settings import Settings
from tests.asgi import Exchange, request
from tests.bad_requests import ASKED, BEST, CHAT, TEXT
from tests.fakes import FakeEngines, fake_served
from tests.keys import bearer, keys_file

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app(engines: FakeEngines, tmp_path: Path) -> AsyncIterator[Any]:
    app = create_app(Settings(keys=keys_file(tmp_path), max_body_kib=1), engines, fake_served())
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        yield app


async def test_a_key_has_so_many_requests_a_minute(client: httpx.AsyncClient) -> None:
    async def ask(name: str) -> httpx.Response:
        return await client.post(TEXT, json={"prompt": "x"}, headers=bearer(name))

    assert [(await ask("rare")).status_code for _ in range(4)] == [200, 200, 429, 429]
    refused = await ask("rare")
    assert refused.json()["error"]["code"] == "overloaded"
    assert "rare has sent 2 requests within a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [(await ask(name)).status_code for name in ("app", "single")] == [200, 200]


async def running(engines: FakeEngines, candidates: int) -> None:
    async with asyncio.timeout(10):
        while engines.running < candidates:
            await asyncio.sleep(0)


async def test_a_key_has_so_many_requests_at_a_time(app: Any, client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.hang = True
    waiting = request(BEST, {"prompt": "x", "n": 2}, bearer("single"))
    answering = asyncio.create_task(waiting.through(app))
    await running(engines, 2)
    refused = await client.get("/v1/models", headers=bearer("single"))
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "single has 1 requests running" in refused.json()["error"]["message"]
    assert (await client.get("/v1/models", headers=bearer("app"))).status_code == 200
    waiting.hung_up.set()
    await answering
    assert waiting.status == 499
    assert (await client.get("/v1/models", headers=bearer("single"))).status_code == 200


async def test_a_request_that_fails_frees_its_place(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    headers = bearer("single")
    engines.fault = RuntimeError("nobody expected this")
    assert (await client.post(BEST, json={"prompt": "x"}, headers=headers)).status_code == 500
    assert (await client.post(BEST, json={"prompt": 5}, headers=headers)).status_code == 400
    engines.fault = None
    assert (await client.post(BEST, json={"prompt": "x"}, headers=headers)).status_code == 200


async def test_a_stream_holds_its_place_until_the_client_goes(
    app: Any, client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.stall = True
    streaming = request(CHAT, {"messages": ASKED, "stream": True}, bearer("single"))
    answering = asyncio.create_task(streaming.through(app))
    await asyncio.wait_for(streaming.answering.wait(), 10)
    assert streaming.status == 200
    assert b"answer" in streaming.body
    assert (await client.get("/v1/models", headers=bearer("single"))).status_code == 429
    streaming.hung_up.set()
    await answering
    async with asyncio.timeout(5):  # Python 3.13 closes the generator a turn of the loop later
        while engines.running:
            await asyncio.sleep(0)
    engines.stall = False
    whole = {"messages": ASKED, "stream": True}
    for _ in range(2):  # and to its end, where the client stays
        assert "[DONE]" in (await client.post(CHAT, json=whole, headers=bearer("single"))).text


async def test_a_body_that_says_it_is_too_large_is_not_read(app: Any) -> None:
    exchange = Exchange(BEST, [b"x" * 2000], bearer("app") | {"Content-Length": "2000"})
    await exchange.through(app)
    assert (exchange.status, exchange.taken) == (413, 0)
    assert b"body: got 2000 bytes, accepted: at most 1 KiB" in exchange.body
    assert b"request_too_large" in exchange.body


@pytest.mark.parametrize("declared", [{}, {"Content-Length": "10"}, {"Content-Length": "many"}])
async def test_a_body_that_grows_too_large_is_read_no_further(app: Any, declared: dict[str, str]) -> None:
    exchange = Exchange(BEST, [b" " * 400] * 10, bearer("app") | declared)
    await exchange.through(app)
    assert (exchange.status, exchange.taken) == (413, 3)
    assert b"request_too_large" in exchange.body
    assert len([message for message in exchange.sent if message["type"] == "http.response.start"]) == 1


async def test_a_body_of_just_the_limit_is_read(app: Any) -> None:
    body = b'{"prompt": "x", "n": 2}'.ljust(1024)
    exchange = Exchange(BEST, [body[:500], body[500:]], bearer("app"))
    await exchange.through(app)
    assert exchange.status == 200


async def test_a_stranger_is_refused_before_the_size_of_the_body(app: Any) -> None:
    exchange = Exchange(BEST, [b"x" * 2000])
    await exchange.through(app)
    assert (exchange.status, exchange.taken) == (401, 0)


async def test_each_refusal_is_counted_by_its_reason(app: Any, client: httpx.AsyncClient, engines: FakeEngines) -> None:
    body = {"prompt": "x"}
    assert [(await client.post(TEXT, json=body, headers=bearer("rare"))).status_code for _ in range(3)][-1] == 429
    assert (await client.post(TEXT, json=body)).status_code == 401
    assert (await client.post(TEXT, json={"prompt": "x" * 2000}, headers=bearer("app"))).status_code == 413
    engines.hang = True
    waiting = request(BEST, body, bearer("single"))
    answering = asyncio.create_task(waiting.through(app))
    await running(engines, 1)
    assert (await client.post(TEXT, json=body, headers=bearer("single"))).status_code == 429
    waiting.hung_up.set()
    await answering
    exposed = (await client.get("/metrics")).text
    for reason in ("rate", "unauthorized", "too_large", "concurrency"):
        assert f'infalign_rejected_total{{reason="{reason}"}} 1.0' in exposed
