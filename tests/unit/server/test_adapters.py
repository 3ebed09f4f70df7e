"""An administrator loads and unloads adapters while the server runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from infalign.bundle import read_bundle
from server.app import Served, create_app
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served
from tests.unit.infalign.test_bundle import parts, write
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
BODY = {"prompt": "x", "n": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bundles of one adapter each: ``base`` and ``more`` on the same parts, ``other`` on another reward model."""
    sources = parts(tmp_path / "parts")
    write(tmp_path / "base", sources, adapter=True, name="best")
    write(tmp_path / "more", sources, adapter=True, name="worst")
    write(tmp_path / "whole", sources, name="whole")
    write(tmp_path / "other", parts(tmp_path / "others", "another"), adapter=True, name="else")
    return tmp_path


@pytest.fixture
async def client(folder: Path, engines: FakeEngines) -> AsyncIterator[httpx.AsyncClient]:
    served = Served(read_bundle(folder / "base"), fake_served().tokenizers, {"best": "best-of-4"})
    app = create_app(Settings(bundles=folder), engines, served)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


async def names(client: httpx.AsyncClient) -> set[str]:
    return {card["id"] for card in (await client.get("/v1/models")).json()["data"] if ":" not in card["id"]}


async def test_what_is_loaded_is_served_and_what_is_unloaded_is_not(
    client: httpx.AsyncClient, engines: FakeEngines, folder: Path
) -> None:
    loaded = await client.post("/v1/adapters", json={"bundle": "more"})
    assert (loaded.status_code, loaded.json()) == (201, {"loaded": ["worst"]})
    assert engines.loaded == {"worst": folder / "more" / "adapters" / "worst"}
    assert await names(client) == {"best", "worst", "auto"}
    answer = (await client.post("/v1/best-of-n", json=BODY | {"model": "worst"})).json()
    assert answer["model"] == "worst" == engines.drawn[-1].policy
    assert (await client.delete("/v1/adapters/worst")).status_code == 204
    assert engines.loaded == {}
    assert await names(client) == {"best"}
    assert (await client.post("/v1/best-of-n", json=BODY | {"model": "worst"})).status_code == 404


async def test_what_is_being_answered_is_finished_first(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    await client.post("/v1/adapters", json={"bundle": "more"})
    engines.slow = {7}
    body = BODY | {"model": "worst", "seed": 7, "timeout": 0.2, "min_candidates": 1}
    running = asyncio.ensure_future(client.post("/v1/best-of-n", json=body))
    while not engines.running:
        await asyncio.sleep(0)
    assert (await client.delete("/v1/adapters/worst")).status_code == 204  # the engine asserts that none runs
    assert (await running).status_code == 200


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        ("base", "whose policy best is served already"),
        ("other", "its reward_model is not that of"),
        ("whole", "the policy whole is a whole model"),
        ("none", "no bundle here"),
        ("../base", "accepted: the name of a folder in"),
    ],
)
async def test_a_bundle_that_does_not_fit_is_refused(client: httpx.AsyncClient, bundle: str, why: str) -> None:
    refused = await client.post("/v1/adapters", json={"bundle": bundle})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "bundle")
    assert why in refused.json()["error"]["message"]
    assert await names(client) == {"best"}


async def test_while_the_engines_are_down_an_adapter_can_be_unloaded_only(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await client.post("/v1/adapters", json={"bundle": "more"})
    engines.dead = True
    assert (await client.delete("/v1/adapters/worst")).status_code == 204
    refused = await client.post("/v1/adapters", json={"bundle": "more"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert await names(client) == {"best"}


async def test_the_last_policy_stays(client: httpx.AsyncClient) -> None:
    refused = await client.delete("/v1/adapters/best")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert (await client.delete("/v1/adapters/else")).status_code == 404


async def test_nothing_is_loaded_without_a_folder(engines: FakeEngines) -> None:
    app = create_app(Settings(), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        refused = await client.post("/v1/adapters", json={"bundle": "more"})
        assert refused.status_code == 400
        assert "--bundles" in refused.json()["error"]["message"]
