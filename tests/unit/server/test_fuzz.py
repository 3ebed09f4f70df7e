"""Requests that Schemathesis makes of the OpenAPI schema, good and bad: never a 5xx. ``make fuzz`` sends more."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from server.app import create_app
from server.settings import Settings
from tests.fakes import SCORER, FakeEngines, fake_served
from tests.http_server import serve_app

EXAMPLES = int(os.environ.get("INFALIGN_FUZZ", "40"))
"""Requests per endpoint and kind."""


@pytest.fixture(scope="module")
def engines() -> FakeEngines:
    return FakeEngines()


@pytest.fixture(scope="module")
def url(engines: FakeEngines) -> Iterator[str]:
    app = create_app(Settings(max_n=8, deadline=5), engines, fake_served(scorer=SCORER))
    with serve_app(app) as url:
        yield url


def test_no_request_is_a_server_error(url: str, engines: FakeEngines, caplog: pytest.LogCaptureFixture) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    sent = 0

    def send(case: schemathesis.Case) -> None:
        nonlocal sent
        answer = case.call()
        sent += 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        assert "Traceback" not in answer.text
        if answer.status_code >= 400 and answer.headers.get("content-type") == "application/json":
            assert {"message", "type", "param", "code"} == answer.json()["error"].keys()

    strategies = [
        found.ok().as_strategy(generation_mode=mode) for found in schema.get_all_operations() for mode in GenerationMode
    ]
    bounded = settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    with caplog.at_level(logging.ERROR, "infalign.server"):
        for strategy in strategies:
            with suppress(Unsatisfiable):  # nothing is wrong with a request that takes nothing
                bounded(given(strategy)(send))()
    print(f"\n{sent} requests by {len(strategies)} strategies")
    assert sent >= EXAMPLES
    assert not [record for record in caplog.records if "unexpected" in record.message]
    assert engines.running == 0
    asked = {"messages": [{"role": "user", "content": "hello"}], "n": 2}
    assert httpx.post(f"{url}/v1/best-of-n", json=asked).status_code == 200
