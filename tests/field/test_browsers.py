"""Browsers: whom a server without keys answers, which pages may call, and what answers tell a browser."""

from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from infalign.errors import InvalidValue
from server.app import create_app
from server.options import parse_settings, settings_options
from server.settings import Settings
from tests.asgi import request
from tests.bad_requests import CHAT, TEXT
from tests.fakes import FakeEngines, fake_served
from tests.keys import bearer, keys_file
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ORIGIN = "https://app.example"

# -- whom a server without keys answers

HOSTS: list[tuple[str, int]] = [
    ("localhost", 200),
    ("LOCALHOST:8000", 200),
    ("127.0.0.1:8000", 200),
    ("127.8.9.10", 200),
    ("[::1]", 200),
    ("[::1]:8000", 200),
    ("my-box:8000", 200),  # what --host says
    ("evil.example", 421),
    ("evil.example:8000", 421),
    ("localhost.evil.example", 421),
    ("127.0.0.1.evil.example", 421),
    ("evil.example@localhost", 421),
    ("localhost:8000:1", 421),
    ("192.168.1.2", 421),
    ("0.0.0.0:8000", 421),
    ("[::2]:8000", 421),
    ("", 421),
    ("local host", 421),
    ("x" * 10_000, 421),
]


@pytest.mark.parametrize(("host", "status"), HOSTS, ids=[host[:30] for host, _ in HOSTS])
async def test_without_keys_only_names_of_this_machine_are_answered(
    engines: FakeEngines, host: str, status: int
) -> None:
    app = create_app(Settings(host="my-box"), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        for path in ("/v1/models", "/health", "/docs", "/metrics"):
            answer = await client.get(path, headers={"Host": host})
            assert answer.status_code == status
        if status == 421:
            error = (await client.get("/v1/models", headers={"Host": host})).json()["error"]
            assert (error["param"], error["code"]) == ("Host", "unknown_host")
            assert "accepted: localhost, 127.0.0.1, [::1], my-box" in error["message"]
            assert len(error["message"]) < 400


@pytest.mark.parametrize(("version", "hosts", "status"), [("1.1", 0, 400), ("1.1", 2, 400), ("1.0", 0, 200)])
async def test_a_request_says_its_host_once(app: Any, version: str, hosts: int, status: int) -> None:
    headers = [(b"content-type", b"application/json"), *[(b"host", b"localhost")] * hosts]
    exchange = request(TEXT, {"prompt": "x"}, headers=None, http_version=version)
    exchange.scope["headers"] = headers
    await exchange.through(app)
    assert exchange.status == status


async def test_with_keys_every_host_is_answered(engines: FakeEngines, tmp_path: Path) -> None:
    app = create_app(Settings(keys=keys_file(tmp_path)), engines, fake_served())
    async with client_of(app) as client:
        answer = await client.get("/v1/models", headers=bearer("app") | {"Host": "models.example"})
    assert answer.status_code == 200


# -- browsers


async def test_a_page_of_an_allowed_origin_may_call_and_asks_without_a_key(
    engines: FakeEngines, tmp_path: Path
) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-custom"}
    settings = Settings(keys=keys_file(tmp_path), cors_origins=f"{ORIGIN},http://localhost:3000")
    app = create_app(settings, engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        allowed = await client.options(CHAT, headers=preflight | {"Origin": ORIGIN})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in allowed.headers
        other = await client.options(CHAT, headers=preflight | {"Origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
        for headers, status in ((bearer("app"), 200), ({}, 401)):  # a page sees why it was refused
            answer = await client.post(TEXT, json={"prompt": "x"}, headers=headers | {"Origin": ORIGIN})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert answer.headers["access-control-expose-headers"] == "X-Request-Id, Retry-After, X-InfAlign-Warning"


async def test_without_the_option_no_page_of_another_origin_may_call(client: httpx.AsyncClient) -> None:
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert (await client.options(CHAT, headers=asks)).status_code == 405
    answer = await client.post(TEXT, json={"prompt": "x"}, headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


ORIGINS: list[tuple[str, bool, bool]] = [
    ("https://app.example", False, True),
    ("http://localhost:3000,https://app.example", False, True),
    ("http://[::1]:3000", False, True),
    ("*", True, True),
    ("*", False, False),
    ("https://app.example/", False, False),
    ("https://app.example/page", False, False),
    ("https://App.example", False, False),
    ("app.example", False, False),
    ("https://*.example", False, False),
    ("null", True, False),
    ("", False, False),
]


@pytest.mark.parametrize(("origins", "keys", "accepted"), ORIGINS)
def test_origins_are_checked_at_the_start(origins: str, keys: bool, accepted: bool) -> None:
    given: dict[str, str | None] = {"cors_origins": origins} | ({"keys": "keys.json"} if keys else {})
    if accepted:
        assert parse_settings(given).cors_origins == tuple(origins.split(","))
    else:
        with pytest.raises(InvalidValue, match="--cors-origins"):
            parse_settings(given)


def test_a_list_may_be_given_in_several_options() -> None:
    """Only the last of them would count, in silence."""
    origins = ("https://a.example,https://b.example", "https://c.example")
    given: list[str] = [part for origin in origins for part in ("--cors-origins", origin)]
    seen: list[Settings] = []
    command = click.Command("serve", callback=lambda **values: seen.append(parse_settings(values)))
    settings_options(command).main(given, standalone_mode=False)
    assert seen[0].cors_origins == ("https://a.example", "https://b.example", "https://c.example")


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/health", "/v1/models", "/v1/nothing", TEXT])
async def test_every_answer_tells_browsers_what_not_to_do(client: httpx.AsyncClient, path: str) -> None:
    for answer in [await client.get(path), await client.post(path, json={"prompt": "x", "stream": True})]:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert ("script-src" in policy) == answer.headers.get("content-type", "").startswith("text/html")
        assert (answer.headers.get_list("cache-control") == ["no-store"]) == path.startswith("/v1")


async def test_pages_load_only_what_this_server_has(client: httpx.AsyncClient) -> None:
    for page in ("/docs", "/redoc"):
        text = (await client.get(page)).text
        assert "http://" not in text
        assert "https://" not in text
