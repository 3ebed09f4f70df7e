"""Real engines that hang, are left behind, or fail at a request while they live."""

import json
import math
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infalign import Bundle
from tests.faults import ASKED, LONG, NORMAL, busiest, selected
from tests.integration.conftest import INFALIGN, READY_WITHIN, Running, children, launched, wait_until, wait_until_ready

SILENCE = 15.0
"""Seconds; a request for log-probabilities would take longer, the first time on a machine."""
UNHOLDABLE = {
    "a repeat above 128": {"type": "string", "pattern": "^.{1,280}$"},
    "a property that is one": {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,252}$"}},
        "required": ["a"],
    },
}


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize("schema", UNHOLDABLE)
@pytest.mark.parametrize("endpoint", ["best-of-n", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_the_engine_cannot_hold_is_refused(
    client: httpx.Client, schema: str, endpoint: str, stream: bool
) -> None:
    body = {"messages": ASKED, "n": 2, "stream": stream, "response_format": response_format(UNHOLDABLE[schema])}
    answer = client.post(f"/v1/{endpoint}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "response_format.json_schema.schema"
    assert client.get("/ready").status_code == 200
    assert client.post("/v1/best-of-n", json=NORMAL).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"response_format": response_format({"type": "object", "properties": {"a": 5}})}, "response_format"),
        ({"response_format": response_format({"$ref": "#/nowhere"})}, "response_format"),
        ({"response_format": response_format({"type": "string", "pattern": "("})}, "response_format"),
    ],
)
def test_what_the_engine_refuses_is_named(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/best-of-n", json={"messages": ASKED, "n": 2, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_tokens_that_cannot_be_drawn_are_finite(client: httpx.Client, stream: bool) -> None:
    body = {
        "messages": ASKED,
        "stream": stream,
        "logprobs": True,
        "top_logprobs": 3,
        "max_tokens": 6,
        "response_format": {"type": "json_object"},
    }
    answer = client.post("/v1/chat/completions", json=body)
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    parsed = [json.loads(event, parse_constant=lambda name: pytest.fail(name)) for event in events]
    choices = [choice for event in parsed for choice in event["choices"] if choice.get("logprobs")]
    found = [
        entry["logprob"]
        for choice in choices
        for token in choice["logprobs"]["content"]
        for entry in (token, *token["top_logprobs"])
    ]
    assert all(isinstance(value, float) and math.isfinite(value) for value in found)
    assert -9999.0 in found


@pytest.fixture(scope="module")
def running(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("hang") / "log"
    with launched(log, str(bundle.path), "--engine-silence", str(SILENCE)) as running:
        yield running


@pytest.mark.parametrize("victim", ["policy", "reward"])
def test_an_engine_that_hangs_is_killed_and_started_anew(running: Running, victim: str) -> None:
    expected, failures = selected(running), running.metric("infalign_engine_failures_total")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(httpx.post, f"{running.url}/v1/best-of-n", json=LONG, timeout=READY_WITHIN)
        wait_until(lambda: running.metric("vllm:num_requests_running") == 16)
        policy, others = busiest(running)
        hung = policy if victim == "policy" else others[0]
        hung.suspend()
        assert answer.result().status_code == 503
    assert not running.ready
    wait_until(lambda: running.metric("infalign_engine_failures_total") == failures + 1)
    wait_until(lambda: running.ready)
    assert hung.pid not in [engine.pid for engine in running.engines]
    assert len(running.engines) == 2
    assert selected(running) == expected


def spawned(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Processes below a server that are, or become, engines."""
    return children(process.pid, "spawn_main")


def serve(bundle: Bundle, log: Path) -> "subprocess.Popen[bytes]":
    command = [INFALIGN, "serve", str(bundle.path), "--port", "0", "--calibration-store", str(log.with_suffix(".db"))]
    with log.open("w") as stderr:
        return subprocess.Popen(command, stderr=stderr)


def test_no_engine_outlives_a_server_that_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    process = serve(bundle, log := tmp_path / "log")
    try:
        url = wait_until_ready(process, log)
        calibrated = httpx.post(f"{url}/v1/calibrations", json={"prompt": "Hello"}, timeout=READY_WITHIN)
        assert calibrated.status_code == 200
        engines = Running(url, process).engines
        assert len(engines) == 3  # policy, reward model, reference
        engines[0].suspend()
    finally:
        process.kill()
    assert psutil.wait_procs(engines, timeout=60)[1] == []


def test_no_engine_outlives_a_server_that_is_killed_while_it_starts(bundle: Bundle, tmp_path: Path) -> None:
    process = serve(bundle, tmp_path / "log")
    try:
        wait_until(lambda: len(spawned(process)) == 2)
        engines = spawned(process)
    finally:
        process.kill()
    assert psutil.wait_procs(engines, timeout=120)[1] == []


def test_a_start_that_hangs_can_be_ended(bundle: Bundle, tmp_path: Path) -> None:
    process = serve(bundle, tmp_path / "log")
    try:
        wait_until(lambda: len(spawned(process)) == 2)
        engines = spawned(process)
        engines[0].suspend()
        process.terminate()
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert psutil.wait_procs(engines, timeout=60)[1] == []
