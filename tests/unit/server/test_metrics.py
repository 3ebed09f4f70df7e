"""The metrics reference says what a server exposes, name by name."""

from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from server.app import create_app
from server.observability.metrics import Metrics
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served
from tests.metrics_table import documented
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
PREFIX = "infalign_"
PARTS = {"le"}
"""Labels that histograms have of themselves."""
BEGUN = "_created"
"""What the text format adds to counters and histograms."""
PROMPTS = tuple(f"question {i}" for i in range(20))


def name_of(family: Any) -> str:
    """As it is in the text format."""
    return str(family.name) + ("_total" if family.type == "counter" else "")


def asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


async def exposed() -> str:
    """What a server exposes after traffic of every kind."""
    app = create_app(Settings(max_n=16), engines := FakeEngines(), fake_served(prompts=PROMPTS))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        for prompt in PROMPTS:
            await client.post("/v1/best-of-n", json={"messages": asked(prompt), "n": 16})
        await client.post("/v1/worst-of-n", json={"prompt": "unknown", "n": 4})
        await client.post("/v1/best-of-n", json={"messages": asked(PROMPTS[0]), "n": 4, "target_quantile": 0.5})
        await client.post("/v1/completions", json={"prompt": "x", "n": 2})
        await client.post("/v1/chat/completions", json={"messages": asked("x"), "best_of": 2, "stream": True})
        await client.post("/v1/rewards", json={"prompt": "x", "responses": ["1"]})
        await client.post("/v1/best-of-n", json={"n": 0})
        await client.get("/nowhere")
        engines.fail_scoring_after = 0
        await client.post("/v1/best-of-n", json={"prompt": "x", "n": 2})
        return (await client.get("/metrics")).text


def test_the_reference_lists_every_metric_and_no_other() -> None:
    types = {name_of(family): family.type for family in Metrics().registry.collect()}
    assert {name: metric.type for name, metric in documented().items()} == types


def test_the_reference_lists_every_label() -> None:
    collectors = {found for found in vars(Metrics()).values() if isinstance(found, MetricWrapperBase)}
    assert collectors
    for collector in collectors:
        (family,) = collector.describe()
        assert documented()[name_of(family)].labels == set(collector._labelnames), family.name


async def test_a_server_exposes_what_the_reference_says() -> None:
    families = [
        family
        for family in text_string_to_metric_families(await exposed())
        if family.name.startswith(PREFIX) and not family.name.endswith(BEGUN)
    ]
    table = documented()
    assert {name_of(family) for family in families} == set(table)
    for family in families:
        metric = table[name_of(family)]
        assert family.type == metric.type, family.name
        for sample in family.samples:
            assert set(sample.labels) - PARTS == metric.labels, sample
    seen = {name_of(family) for family in families if family.samples}
    assert {"infalign_quantile_drift", "infalign_own_overhead_seconds"} <= seen


async def test_labels_are_bounded_whatever_clients_send() -> None:
    app = create_app(Settings(), engines := FakeEngines(), fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        for i in range(3):
            await client.get(f"/made/up/{i}")
            await client.post("/v1/best-of-n", json={"prompt": "x", "model": f"made-up-{i}"})
            await client.post("/v1/best-of-n", json={"prompt": "x", "n": 2 + i})
        text = (await client.get("/metrics")).text
    assert "made" not in text
    assert 'infalign_candidates_total{procedure="best-of-n"} 9.0' in text
