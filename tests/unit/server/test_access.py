"""Who is let in, and what for."""

import hmac
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from server.access.callers import Keyring
from server.app import create_app
from server.settings import Settings
from tests.fakes import KNOWN, SCORER, FakeEngines, fake_served
from tests.keys import RECORDS, bearer, key, keys_file
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]
BEST, CHAT, TEXT = "/v1/best-of-n", "/v1/chat/completions", "/v1/completions"
WAYS_TO_THE_WORST: list[tuple[str, dict[str, Any], str | None]] = [
    ("/v1/worst-of-n", {"messages": ASKED, "n": 2}, None),
    ("/v1/worst-of-n", {"prompt": "x", "n": 2, "model": "fake:worst-of-2"}, None),
    (CHAT, {"messages": ASKED, "worst_of": 2}, "worst_of"),
    (CHAT, {"messages": ASKED, "worst_of": 2, "stream": True}, "worst_of"),
    (CHAT, {"messages": ASKED, "worst_of": 2, "model": "fake:worst-of-2"}, "worst_of"),
    (CHAT, {"messages": ASKED, "model": "fake:worst-of-2"}, "model"),
    (CHAT, {"messages": ASKED, "model": "auto:worst-of-2"}, "model"),
    (CHAT, {"messages": ASKED, "model": "fake:worst-of-2", "stream": True}, "model"),
    (TEXT, {"prompt": "x", "worst_of": 1}, "worst_of"),
    (TEXT, {"prompt": "x", "model": "fake:worst-of-2"}, "model"),
    (BEST, {"messages": ASKED, "n": 2, "return_candidates": True}, "return_candidates"),
    (CHAT, {"messages": ASKED, "best_of": 2, "return_candidates": True}, "return_candidates"),
    (CHAT, {"messages": ASKED, "return_candidates": True, "stream": True}, "return_candidates"),
    (TEXT, {"prompt": "x", "return_candidates": True}, "return_candidates"),
]


@asynccontextmanager
async def guarded(tmp_path: Path, *names: str) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    engines = FakeEngines()
    app = create_app(Settings(keys=keys_file(tmp_path, *names)), engines, fake_served(scorer=SCORER))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield app, client


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (None, "the header is missing"),
        (b"", "not a bearer key"),
        (b"Bearer", "not a bearer key"),
        (b"Bearer ", "not a bearer key"),
        (b"Basic " + key("app").encode(), "not a bearer key"),
        (key("app").encode(), "not a bearer key"),
        (b"Bearer sk-infalign-wrong", "not known"),
        (b"Bearer " + key("app").encode() + b"x", "not known"),
        ("Bearer schlüssel-ключ".encode(), "not known"),
        (b"Bearer \xff\xfe", "not known"),
    ],
)
async def test_without_a_known_key_nobody_is_let_in(tmp_path: Path, header: bytes | None, why: str) -> None:
    async with guarded(tmp_path) as (_, client):
        answer = await client.post(
            BEST, content=b"not json", headers=[] if header is None else [(b"authorization", header)]
        )
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert why in error["message"]
    assert key("app") not in answer.text


async def test_two_keys_at_a_time_are_none(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, client):
        twice = [("Authorization", f"Bearer {key('app')}"), ("Authorization", f"Bearer {key('root')}")]
        answer = await client.get("/v1/models", headers=twice)
    assert answer.status_code == 401
    assert "came 2 times" in answer.json()["error"]["message"]


async def test_everything_under_v1_is_guarded_and_the_rest_is_open(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (app, client):
        routes = [(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()]
        assert len([path for _, path in routes if path.startswith("/v1/")]) >= 6
        for method, path in [*routes, ("GET", "/v1"), ("GET", "/v1/nothing"), ("DELETE", "/v1/models")]:
            status = (await client.request(method, path)).status_code
            assert (status == 401) == path.startswith("/v1"), (method, path, status)
        for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/v1/nothing", headers=bearer("app"))).status_code == 404


async def test_routes_of_v1_fail_closed_where_nothing_authenticates(tmp_path: Path) -> None:
    app = create_app(Settings(), FakeEngines(), fake_served())
    app.user_middleware.clear()
    async with app.router.lifespan_context(app), client_of(app) as client:
        for route in app.routes:
            if isinstance(route, APIRoute) and route.path.startswith("/v1/"):
                answer = await client.request(next(iter(route.methods)), route.path, json={"prompt": "x"})
                assert answer.status_code == 401, route.path


@pytest.mark.parametrize(("path", "body", "param"), WAYS_TO_THE_WORST)
async def test_the_worst_and_the_unfiltered_take_probe(
    tmp_path: Path, path: str, body: dict[str, Any], param: str | None
) -> None:
    async with guarded(tmp_path) as (_, client):
        refused = await client.post(path, json=body, headers=bearer("app"))
        allowed = [
            (await client.post(path, json=body, headers=bearer(name))).status_code for name in ("safety", "root")
        ]
        other = await client.post(path, json=body, headers=bearer("prober"))
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("permission_error", "missing_role", param)
    assert "role probe, app has generate" in error["message"]
    assert allowed == [200, 200]
    assert other.status_code == 403
    assert "role generate, prober has probe" in other.json()["error"]["message"]


async def test_generate_is_enough_for_the_rest_and_models_take_any_role(tmp_path: Path) -> None:
    ordinary: list[tuple[str, dict[str, Any]]] = [
        (BEST, {"messages": ASKED, "n": 2, "return_candidates": False}),
        (CHAT, {"messages": ASKED, "best_of": 2}),
        (CHAT, {"messages": ASKED, "model": "fake:best-of-2", "stream": True}),
        (TEXT, {"prompt": "x"}),
        ("/v1/rewards", {"prompt": "x", "responses": ["1"]}),
        ("/v1/budgets", {"prompts": ["x"], "total": 2}),
    ]
    async with guarded(tmp_path) as (_, client):
        for path, body in ordinary:
            assert (await client.post(path, json=body, headers=bearer("app"))).status_code == 200, path
            assert (await client.post(path, json=body, headers=bearer("prober"))).status_code == 403, path
        for name in RECORDS:
            assert (await client.get("/v1/models", headers=bearer(name))).status_code == 200


async def test_without_a_keys_file_everyone_may_everything(client: httpx.AsyncClient) -> None:
    for path, body, _ in WAYS_TO_THE_WORST:
        assert (await client.post(path, json=body, headers={"Authorization": "Bearer none"})).status_code == 200


def test_every_key_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    genuine = hmac.compare_digest

    def watched(one: str, other: str) -> bool:
        compared.append((one, other))
        return genuine(one, other)

    keyring = Keyring(keys_file(tmp_path))
    monkeypatch.setattr("server.access.callers.hmac.compare_digest", watched)
    for name in RECORDS:
        compared.clear()
        assert keyring.authenticate([(b"authorization", f"bearer  {key(name)}".encode())]).name == name
        assert len(compared) == len(RECORDS)  # not one less where the first of them matches


@contextmanager
def in_log(caplog: pytest.LogCaptureFixture, text: str) -> Iterator[None]:
    caplog.clear()
    with caplog.at_level("INFO", "infalign.server"):
        yield
    assert text in caplog.text


async def test_the_keys_are_reread_and_a_broken_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded(tmp_path, "app") as (app, client):
        keyring = app.state.keyring
        assert (await client.get("/v1/models", headers=bearer("root"))).status_code == 401
        path = keys_file(tmp_path, "root")
        with in_log(caplog, "read again: 1 keys"):
            keyring.reload()
        assert (await client.get("/v1/models", headers=bearer("root"))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer("app"))).status_code == 401
        path.write_text("{")
        with in_log(caplog, "the keys stay as they were"):
            keyring.reload()
        path.unlink()
        with in_log(caplog, "no such file"):
            keyring.reload()
        assert (await client.get("/v1/models", headers=bearer("root"))).status_code == 200


async def test_the_schema_declares_the_keys(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert ({"key": []} in operation.get("security", [])) == path.startswith("/v1/"), path
