"""Access: what a key may see, and what the audit log has of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.settings import Settings
from tests.asgi import Exchange, request
from tests.bad_requests import ASKED, BEST, CHAT, REWARDS, TEXT, WORST
from tests.fakes import FakeEngines, fake_served
from tests.keys import bearer, keys_file
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@asynccontextmanager
async def application(engines: FakeEngines, **settings: Any) -> AsyncIterator[Any]:
    app = create_app(Settings(max_n=16, **settings), engines, fake_served())
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        yield app


@pytest.fixture
async def app(engines: FakeEngines, tmp_path: Path, audit: Path) -> AsyncIterator[Any]:
    async with application(engines, keys=keys_file(tmp_path), audit_log=audit) as app:
        yield app


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- what a key without the role probe may see

UPPER_HALF: list[tuple[str, str, dict[str, Any]]] = [
    ("one of two", BEST, {"n": 2, "top": 1}),
    ("half of eight", BEST, {"n": 8, "top": 4}),
    ("half of seven", BEST, {"n": 7, "top": 3}),
    ("half by best_of", CHAT, {"best_of": 8, "n": 4}),
    ("half in a stream", CHAT, {"best_of": 8, "n": 4, "stream": True}),
    ("half by the model's name", CHAT, {"model": "fake:best-of-8", "n": 4}),
    ("one draw", CHAT, {"n": 1}),
    ("one draw as the best of one", TEXT, {"best_of": 1}),
]
BEYOND: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("all of eight", BEST, {"n": 8, "top": 8}, "top", "n: 16"),
    ("one more than half", BEST, {"n": 8, "top": 5}, "top", "n: 10"),
    ("more than half of seven", BEST, {"n": 7, "top": 4}, "top", "n: 8"),
    ("both of two", BEST, {"n": 2, "top": 2}, "top", "n: 4"),
    ("events", BEST, {"n": 8, "top": 8, "stream": True}, "top", "n: 16"),
    ("all by best_of", CHAT, {"best_of": 8, "n": 8}, "n", "best_of: 16"),
    ("all by best_of of a text", TEXT, {"best_of": 8, "n": 8}, "n", "best_of: 16"),
    ("more than half of the model's name", CHAT, {"model": "fake:best-of-4", "n": 3}, "n", ":best-of-6"),
    ("several draws", CHAT, {"n": 8}, "n", "best_of: 16"),
    ("several draws in a stream", CHAT, {"n": 2, "stream": True}, "n", "best_of: 4"),
    ("several draws of a text", TEXT, {"n": 2}, "n", "best_of: 4"),
]


def prompt_of(endpoint: str) -> dict[str, Any]:
    return {"prompt": "x"} if endpoint == TEXT else {"messages": ASKED}


@pytest.mark.parametrize(("endpoint", "body"), [row[1:] for row in UPPER_HALF], ids=[row[0] for row in UPPER_HALF])
async def test_any_key_may_see_the_upper_half(
    client: httpx.AsyncClient, audit: Path, endpoint: str, body: dict[str, Any]
) -> None:
    answer = await client.post(endpoint, json=prompt_of(endpoint) | body, headers=bearer("app"))
    assert answer.status_code == 200, answer.text
    assert lines(audit) == []


@pytest.mark.parametrize(
    ("endpoint", "body", "param", "instead"), [row[1:] for row in BEYOND], ids=[row[0] for row in BEYOND]
)
async def test_the_lower_half_takes_probe_and_is_audited(
    client: httpx.AsyncClient, audit: Path, endpoint: str, body: dict[str, Any], param: str, instead: str
) -> None:
    body = prompt_of(endpoint) | body
    refused = await client.post(endpoint, json=body, headers=bearer("app"))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (403, "missing_role", param)
    assert instead in error["message"]
    for name in ("safety", "root"):
        assert (await client.post(endpoint, json=body, headers=bearer(name))).status_code == 200
    assert [(line["key"], line["status"], line["unfiltered"]) for line in lines(audit)] == [
        ("app", 403, True),
        ("safety", 200, True),
        ("root", 200, True),
    ]


async def test_the_upper_half_is_of_those_that_were_drawn_in_time(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.slow = set(range(4, 8))
    body = {"messages": ASKED, "best_of": 8, "n": 4, "seed": 0, "timeout": 0.2, "min_candidates": 4}
    for name, count in (("app", 2), ("safety", 4)):
        choices = (await client.post(CHAT, json=body, headers=bearer(name))).json()["choices"]
        assert [choice["seed"] for choice in choices] == [3, 2, 1, 0][:count]


@pytest.mark.parametrize("endpoint", [CHAT, BEST])
async def test_a_stream_does_not_say_which_candidate_is_the_worst(client: httpx.AsyncClient, endpoint: str) -> None:
    body = {"messages": ASKED, "stream": True} | ({"best_of": 4} if endpoint == CHAT else {"n": 4})
    events = {}
    for name in ("app", "safety"):
        answer = await client.post(endpoint, json=body, headers=bearer(name))
        sent = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        events[name] = [one.get("candidate", one) for one in sent if "event" in one.get("candidate", one)]
        assert len(events[name]) == 8
    assert {key for event in events["app"] for key in event} == {
        "event",
        "index",
        "finish_reason",
        "completion_tokens",
    }
    assert {"reward", "seed"} <= {key for event in events["safety"] for key in event}


async def test_without_keys_everyone_sees_everything_and_only_the_worst_is_audited(
    engines: FakeEngines, audit: Path
) -> None:
    async with application(engines, audit_log=audit) as app, client_of(app) as client:
        for _, endpoint, body, *_ in BEYOND:
            assert (await client.post(endpoint, json=prompt_of(endpoint) | body)).status_code == 200
        assert lines(audit) == []
        assert (await client.post(WORST, json={"messages": ASKED})).status_code == 200
    assert [line["procedure"] for line in lines(audit)] == ["worst-of-8"]


# -- the audit log has every refusal

PROBING: list[tuple[str, str, dict[str, Any], str]] = [
    ("endpoint", WORST, {"messages": ASKED, "n": 4}, "worst-of-4"),
    ("worst_of", CHAT, {"messages": ASKED, "worst_of": 4, "user": "me"}, "worst-of-4"),
    ("name of a model", CHAT, {"messages": ASKED, "model": "fake:worst-of-4"}, "worst-of-4"),
    ("text", TEXT, {"prompt": "x", "worst_of": 4}, "worst-of-4"),
    ("return_candidates", BEST, {"messages": ASKED, "n": 4, "return_candidates": True}, "best-of-4"),
    ("too many", CHAT, {"messages": ASKED, "best_of": 4, "n": 4}, "best-of-4"),
    ("several draws", TEXT, {"prompt": "x", "n": 4}, "standard"),
]
NAMED = pytest.mark.parametrize(
    ("endpoint", "body", "procedure"), [row[1:] for row in PROBING], ids=[row[0] for row in PROBING]
)


@NAMED
async def test_a_key_without_generate_is_refused_and_noted(
    client: httpx.AsyncClient, audit: Path, endpoint: str, body: dict[str, Any], procedure: str
) -> None:
    assert (await client.post(endpoint, json=body, headers=bearer("prober"))).status_code == 403
    (line,) = lines(audit)
    assert (line["key"], line["procedure"], line["n"], line["status"]) == ("prober", procedure, 4, 403)
    assert (line["model"], line["user"], line["prompt_key"]) == ("fake", body.get("user"), None)


@NAMED
async def test_a_key_at_its_rate_is_refused_and_noted(
    client: httpx.AsyncClient, audit: Path, endpoint: str, body: dict[str, Any], procedure: str
) -> None:
    for _ in range(2):
        await client.get("/v1/models", headers=bearer("rare"))
    assert (await client.post(endpoint, json=body, headers=bearer("rare"))).status_code == 429
    (line,) = lines(audit)
    assert (line["key"], line["procedure"], line["n"], line["status"]) == ("rare", procedure, 4, 429)


@NAMED
async def test_a_key_with_too_much_at_a_time_is_refused_and_noted(
    app: Any,
    client: httpx.AsyncClient,
    engines: FakeEngines,
    audit: Path,
    endpoint: str,
    body: dict[str, Any],
    procedure: str,
) -> None:
    engines.hang = True
    waiting = request(BEST, {"prompt": "x", "n": 2}, bearer("single"))
    answering = asyncio.create_task(waiting.through(app))
    while engines.running < 2:
        await asyncio.sleep(0)
    assert (await client.post(endpoint, json=body, headers=bearer("single"))).status_code == 429
    waiting.hung_up.set()
    await answering
    (line,) = lines(audit)
    assert (line["key"], line["procedure"], line["status"]) == ("single", procedure, 429)


async def test_a_server_at_its_limit_and_one_out_of_time_note_the_call(
    engines: FakeEngines, tmp_path: Path, audit: Path
) -> None:
    settings = {"keys": keys_file(tmp_path), "audit_log": audit, "max_requests": 1}
    async with application(engines, **settings) as app, client_of(app) as client:
        engines.hang = True
        worst = {"messages": ASKED, "worst_of": 2, "timeout": 0.2}
        both = [client.post(CHAT, json=worst, headers=bearer("safety")) for _ in range(2)]
        statuses = sorted(answer.status_code for answer in await asyncio.gather(*both))
    assert statuses == [429, 504]
    assert sorted(line["status"] for line in lines(audit)) == statuses


OTHERS: list[tuple[str, str, bytes, list[str]]] = [
    ("an ordinary call", CHAT, b'{"messages": [{"role": "user", "content": "worst"}]}', []),
    ("rewards", REWARDS, b'{"prompt": "x", "responses": ["1"]}', []),
    ("no JSON", CHAT, b"worst_of", []),
    ("no valid call", CHAT, b'{"messages": [], "worst_of": 2}', []),
    ("no known model", CHAT, b'{"messages": [{"role": "user", "content": "x"}], "worst_of": 2, "model": "y"}', []),
    ("deep", CHAT, b"[" * 100_000, []),
    ("more than is read", CHAT, b'{"worst_of": 2, "x": "' + b"x" * 2_000_000 + b'"}', []),
    ("UTF-16", TEXT, '{"prompt": "x", "worst_of": 2}'.encode("utf-16"), ["worst-of-2"]),
    ("escapes", TEXT, b'{"prompt": "x", "\\u0077orst_of": 2}', ["worst-of-2"]),
    ("the endpoint, with no valid body", WORST, b"{", ["worst-of-n"]),
    ("the endpoint, without a body", WORST, b"", ["worst-of-n"]),
]


@pytest.mark.parametrize(
    ("endpoint", "content", "procedures"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS]
)
async def test_what_a_limited_request_was_is_read_from_its_body(
    client: httpx.AsyncClient, audit: Path, endpoint: str, content: bytes, procedures: list[str]
) -> None:
    for _ in range(2):
        await client.get("/v1/models", headers=bearer("rare"))
    assert (await client.post(endpoint, content=content, headers=bearer("rare"))).status_code == 429
    assert [line["procedure"] for line in lines(audit)] == procedures


async def test_a_stranger_is_not_noted(client: httpx.AsyncClient, audit: Path) -> None:
    assert (await client.post(WORST, json={"messages": ASKED})).status_code == 401
    assert lines(audit) == []


async def test_a_refusal_does_not_wait_for_a_body_that_does_not_come(
    app: Any, client: httpx.AsyncClient, audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.middleware.probe_calls.BODY_SECONDS", 0.01)
    for _ in range(2):
        await client.get("/v1/models", headers=bearer("rare"))
    silent = Exchange(WORST, [], bearer("rare"))
    await silent.through(app)
    assert silent.status == 429
    assert [line["procedure"] for line in lines(audit)] == ["worst-of-n"]
