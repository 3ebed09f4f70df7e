from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infalign.manifest import ScorerRecord
from server.app import ServedBundle, create_app
from server.settings import Settings
from tests.fakes import SCORER, FakeEngines, fake_served


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_is_kept_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines()


@pytest.fixture
def served() -> ServedBundle:
    return fake_served()


@pytest.fixture
async def app(engines: FakeEngines, served: ServedBundle) -> AsyncIterator[Any]:
    app = create_app(Settings(max_n=16), engines, served)
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        yield app


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@asynccontextmanager
async def serve_scorer(
    engines: FakeEngines, scorer: ScorerRecord | None = SCORER, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose bundle has a prefix scorer."""
    app = create_app(Settings(max_n=16), engines, fake_served(scorer=scorer, **options))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))
