"""A replica as Ray Serve runs it, without Ray; tests/integration/test_ray.py has the real thing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from infalign import Bundle
from server.app import ServedBundle
from server.engines import Engines, EnginesDown
from server.ray import Arguments, Replica
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
CONFIG = Path(__file__).parents[3] / "deploy" / "ray" / "serve.yaml"


def replica_of(engines: Engines, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[Replica, Any]:
    def assemble(bundle: Bundle, settings: Settings, reference: bool) -> tuple[Engines, ServedBundle]:
        return engines, fake_served()

    monkeypatch.setattr("server.ray.read_bundle", lambda path: path)
    replica = Replica(Arguments(**given), assemble)
    return replica, replica.__serve_build_asgi_app__()


async def test_a_replica_is_the_application_and_lives_with_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = FakeEngines()
    replica, app = replica_of(engines, monkeypatch, max_n=5)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await replica.check_health()
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post("/v1/best-of-n", json={"prompt": "x", "n": 5})).status_code == 200
        assert (await client.post("/v1/best-of-n", json={"prompt": "x", "n": 6})).status_code == 400
        engines.dead = True
        with pytest.raises(EnginesDown):
            await replica.check_health()


async def test_a_replica_whose_engines_do_not_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeEngines):
        async def start(self) -> None:
            raise RuntimeError("no memory")

    replica, app = replica_of(Broken(), monkeypatch)
    async with app.router.lifespan_context(app):
        with pytest.raises(RuntimeError, match="no memory"):
            await replica.check_health()


async def test_a_replica_ends_for_any_engine_if_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engines.supervisor.CHECK_SECONDS", 0.001)
    engines = FakeEngines()
    replica, app = replica_of(engines, monkeypatch, on_engine_failure="exit")
    async with app.router.lifespan_context(app):
        await replica.check_health()
        engines.late_failures = [EnginesDown("the scorer has died")]
        while engines.late_failures:
            await asyncio.sleep(0.001)
        with pytest.raises(EnginesDown, match="the scorer has died"):
            await replica.check_health()


async def test_a_replica_outlives_engines_that_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = FakeEngines()
    replica, app = replica_of(engines, monkeypatch, policy_urls="http://a", reward_urls="http://b")
    async with app.router.lifespan_context(app):
        await replica.check_health()
        engines.dead = True
        await replica.check_health()


def test_the_shipped_config_has_settings_that_exist() -> None:
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    arguments = Arguments.model_validate(application["args"])
    assert len(arguments.policy_urls) == 2
    with pytest.raises(ValidationError, match="max_m"):
        Arguments.model_validate(application["args"] | {"max_m": 3})
