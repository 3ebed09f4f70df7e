"""An administrator loads and unloads adapters while the server runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from infalign import BestOfN, Calibration, join_bundles
from infalign.bundle import read_bundle
from server.app import ServedBundle, create_app
from server.engines import EnginesDown, Refused, Sampling
from server.errors import UnknownModel
from server.settings import Settings
from tests.asgi import request
from tests.bundles import LAW, parts, write
from tests.fakes import FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
BODY = {"prompt": "x", "n": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bundles of adapters on the same parts, ``two`` of two of them, and some that do not fit."""
    sources = parts(tmp_path / "parts")
    write(tmp_path / "base", sources, adapter=True, name="best")
    write(tmp_path / "more", sources, adapter=True, name="worst")
    write(tmp_path / "third", sources, adapter=True, name="third")
    write(tmp_path / "whole", sources, name="whole")
    join_bundles([read_bundle(tmp_path / name) for name in ("more", "third")], tmp_path / "two")
    write(tmp_path / "other", parts(tmp_path / "others", "another"), adapter=True, name="else")
    return tmp_path


@pytest.fixture
async def app(folder: Path, engines: FakeEngines) -> AsyncIterator[Any]:
    served = ServedBundle(read_bundle(folder / "base"), fake_served().tokenizers, {"best": "best-of-4"})
    app = create_app(Settings(bundles=folder), engines, served)
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        yield app


class Loading(FakeEngines):
    """Loads ``third`` only as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def load(self, policy: str, adapter: Path) -> None:
        if policy == "third":
            self.begun.set()
            await self.go_on.wait()
            if self.failure:
                raise self.failure
        await super().load(policy, adapter)


@pytest.fixture
def engines() -> Loading:
    return Loading()


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


async def test_the_session_describes_what_is_loaded(client: httpx.AsyncClient) -> None:
    async def cards() -> dict[str, bool]:
        return {model["id"]: "card" in model for model in (await client.get("/v1/session")).json()["models"]}

    assert await cards() == {"best": True}
    await client.post("/v1/adapters", json={"bundle": "more"})
    assert await cards() == {"best": True, "worst": True}
    await client.delete("/v1/adapters/worst")
    assert await cards() == {"best": True}


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


@pytest.mark.parametrize(
    ("failure", "status"), [(Refused("no room"), 400), (EnginesDown("dead"), 503), (LookupError("a mistake"), 500)]
)
async def test_of_a_bundle_all_adapters_are_served_or_none(
    client: httpx.AsyncClient, engines: Loading, failure: Exception, status: int
) -> None:
    engines.failure = failure
    engines.go_on.set()
    assert (await client.post("/v1/adapters", json={"bundle": "two"})).status_code == status
    assert engines.loaded == {}
    assert await names(client) == {"best"}
    engines.failure = None
    again = await client.post("/v1/adapters", json={"bundle": "two"})
    assert (again.status_code, again.json()) == (201, {"loaded": ["worst", "third"]})
    assert set(engines.loaded) == {"worst", "third"}


async def test_a_client_that_goes_away_leaves_nothing_loaded(
    app: Any, client: httpx.AsyncClient, engines: Loading
) -> None:
    leaving = request("/v1/adapters", {"bundle": "two"})
    answering = asyncio.create_task(leaving.through(app))
    await asyncio.wait_for(engines.begun.wait(), 10)
    assert set(engines.loaded) == {"worst"}
    assert await names(client) == {"best"}  # not before all are loaded
    leaving.hung_up.set()
    while not engines.go_on.is_set():  # the engine cannot be interrupted
        await asyncio.sleep(0)
        engines.go_on.set()
    await answering
    assert leaving.status == 499
    assert engines.loaded == {}
    assert await names(client) == {"best"}


async def test_changes_are_made_one_after_another(client: httpx.AsyncClient, engines: Loading) -> None:
    engines.go_on.set()
    both = [client.post("/v1/adapters", json={"bundle": name}) for name in ("two", "more")]
    assert sorted([answer.status_code for answer in await asyncio.gather(*both)]) == [
        201,
        400,
    ]  # whichever came first, the other has a policy that is served already
    assert "worst" in engines.loaded
    assert await names(client) == {"best", "auto", *engines.loaded}


async def test_of_two_that_unload_the_same_one_is_told_that_it_is_gone(
    client: httpx.AsyncClient, engines: Loading
) -> None:
    await client.post("/v1/adapters", json={"bundle": "more"})
    both = await asyncio.gather(*[client.delete("/v1/adapters/worst") for _ in range(2)])
    assert sorted(answer.status_code for answer in both) == [204, 404]
    assert engines.loaded == {}


async def test_unloading_goes_on_to_its_end(app: Any, client: httpx.AsyncClient, engines: Loading) -> None:
    await client.post("/v1/adapters", json={"bundle": "more"})
    serving = app.state.serving
    with serving.catalogue.use("worst"):
        unloading = asyncio.create_task(serving.adapters.unload("worst"))
        while "worst" in serving.catalogue.policies:
            await asyncio.sleep(0)
        unloading.cancel()
        await asyncio.sleep(0)
        assert set(engines.loaded) == {"worst"}  # a request uses it
    with pytest.raises(asyncio.CancelledError):
        await unloading
    assert engines.loaded == {}


async def test_a_request_for_an_adapter_is_unknown_until_it_is_loaded_and_once_it_is_not(
    app: Any, client: httpx.AsyncClient, engines: Loading
) -> None:
    loading = asyncio.ensure_future(client.post("/v1/adapters", json={"bundle": "third"}))
    await asyncio.wait_for(engines.begun.wait(), 10)
    assert (await client.post("/v1/best-of-n", json=BODY | {"model": "third"})).status_code == 404
    engines.go_on.set()
    assert (await loading).status_code == 201
    assert (await client.post("/v1/best-of-n", json=BODY | {"model": "third"})).status_code == 200
    catalogue = app.state.serving.catalogue
    chosen = catalogue.choose("third", BestOfN(2)).policy
    assert (await client.delete("/v1/adapters/third")).status_code == 204
    with pytest.raises(UnknownModel, match="got 'third'"), catalogue.use(chosen):
        pass


async def test_drift_follows_the_adapters(app: Any, client: httpx.AsyncClient) -> None:
    def models_with_drift() -> set[str]:
        names = ("infalign_quantile_drift", "infalign_quantile_drift_samples")
        samples = [one for metric in app.state.serving.metrics.registry.collect() for one in metric.samples]
        return {sample.labels["model"] for sample in samples if sample.name in names}

    def serve(policy: str) -> None:
        drift, law = app.state.serving.decoder.drift, Sampling.from_law(LAW, policy=policy, seed=1)
        for prompt in range(32):
            drift.observe(law, str(prompt), Calibration(np.arange(20.0)), [float(rank) for rank in range(8)])

    await client.post("/v1/adapters", json={"bundle": "more"})
    for policy in ("best", "worst"):
        serve(policy)
    await client.get("/metrics")
    assert models_with_drift() == {"best", "worst"}
    await client.delete("/v1/adapters/worst")
    serve("worst")
    await client.get("/metrics")
    assert models_with_drift() == {"best"}
    await client.post("/v1/adapters", json={"bundle": "more"})
    serve("worst")
    assert models_with_drift() == {"best", "worst"}
