"""What an operator does to a server that is serving, on the real engines."""

import json
import re
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infalign import Bundle
from tests.integration.conftest import Running, launched, wait_until
from tests.keys import bearer, keys_file

NOWHERE = "http://127.0.0.1:9"
"""Where no collector listens."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def running(bundle: Bundle, home: Path) -> Iterator[Running]:
    """Everything switched on that an operator can; that it ends with status 0 is asserted at the end."""
    options = ("--keys", str(keys_file(home, "app", "safety")), "--log-format", "json", "--otlp-endpoint", NOWHERE)
    kept = ("--calibration-store", str(home / "calibrations.sqlite"), "--audit-log", str(home / "audit.jsonl"))
    with launched(home / "log", str(bundle.path), *options, *kept) as running:
        yield running


def post(running: Running, endpoint: str, name: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/v1/{endpoint}", json=body, headers=bearer(name), timeout=120)


def test_keys_are_read_again_under_load(running: Running, home: Path) -> None:
    asked = {"prompt": "Hello", "n": 4, "max_tokens": 200, "min_tokens": 200}
    assert post(running, "best-of-n", "rare", prompt="x", n=1).status_code == 401
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(post, running, "best-of-n", "app", **asked) for _ in range(4)]
        wait_until(lambda: running.metric("infalign_requests_in_flight") == 4)
        keys_file(home, "safety", "rare")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: post(running, "best-of-n", "app", prompt="x", n=1).status_code == 401)
        assert [answer.result().status_code for answer in answers] == [200] * 4, "what was let in is answered"
    assert post(running, "best-of-n", "rare", prompt="x", n=1).status_code == 200


def test_a_full_disk_costs_the_store_and_nothing_else(running: Running, home: Path) -> None:
    def calibrated(number: int) -> dict[str, Any]:
        asked = [{"role": "user", "content": f"Question {number}?"}]
        answer = post(running, "best-of-n", "safety", messages=asked, n=2, seed=1, calibrate=True)
        assert answer.status_code == 200, answer.text
        assert answer.json()["calibration"]["scope"] == "prompt"
        return dict(answer.json()["selected"][0])

    first = calibrated(0)
    process, kept = psutil.Process(running.pid), home / "calibrations.sqlite"
    unlimited = process.rlimit(resource.RLIMIT_FSIZE)
    # No file of the server may grow: what SQLite sees of a full disk.
    full = kept.with_name(f"{kept.name}-wal").stat().st_size
    assert full > 2 * (home / "log").stat().st_size, "the log has room"
    process.rlimit(resource.RLIMIT_FSIZE, (full, unlimited[1]))
    try:
        errors = running.metric("infalign_calibration_store_errors_total")
        second = calibrated(1)
        assert running.metric("infalign_calibration_store_errors_total") > errors
        assert calibrated(1) == second, "kept in memory"
        assert calibrated(0) == first
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, unlimited)
    errors = running.metric("infalign_calibration_store_errors_total")
    calibrated(2)
    assert running.metric("infalign_calibration_store_errors_total") == errors
    assert running.ready


def test_each_worst_of_n_call_has_its_line(running: Running, home: Path) -> None:
    answer = post(running, "worst-of-n", "safety", prompt="Hello", n=2, user="probe-7")
    log = home / "audit.jsonl"
    wait_until(lambda: log.read_text().endswith("\n"))  # it is written once the answer has gone
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["request_id"], line["key"]) == (answer.headers["x-request-id"], "safety")
    assert (line["user"], line["n"], line["status"]) == ("probe-7", 2, 200)


def test_every_line_of_the_log_is_json_though_an_engine_dies(running: Running, home: Path) -> None:
    running.engines[0].kill()
    wait_until(lambda: not running.ready)
    wait_until(lambda: running.ready)
    assert post(running, "best-of-n", "safety", prompt="x", n=1).status_code == 200
    banner, *lines = (home / "log").read_text().splitlines()
    assert banner.startswith("serving ")
    strays = [line for line in lines if not line.startswith("{")]
    assert not strays
    messages = [json.loads(line)["message"] for line in lines]
    assert any(re.fullmatch(r"the engine of the .* has died", message) for message in messages)
    assert "the engines are up again" in messages
    assert "AsyncLLM output_handler failed." in messages, "vLLM's own lines are records, not captured output"


def test_the_metrics_of_vllm_that_dashboard_and_alerts_use_are_exposed(running: Running) -> None:
    root = Path(__file__).parents[2]
    pages = ("docs/reference/metrics.md", "deploy/grafana/dashboard.json", "deploy/prometheus/rules.yaml")
    named = {name for page in pages for name in re.findall(r"\bvllm:\w+", (root / page).read_text(encoding="utf-8"))}
    assert named
    exposed = set(re.findall(r"^vllm:\w+", httpx.get(f"{running.url}/metrics").text, re.MULTILINE))
    assert named <= exposed
