"""Real engines that hang or are left behind."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from infalign import Bundle
from tests.faults import LONG, busiest, selected
from tests.integration.conftest import READY_WITHIN, Running, children, wait_until, wait_until_ready
from tests.training_runs import INFALIGN

SILENCE = 15.0
"""Seconds; a request for log-probabilities would take longer, the first time on a machine."""


@pytest.fixture(scope="module")
def running(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that survives its engines, and is killed by the last test that uses it."""
    log = tmp_path_factory.mktemp("hang") / "log"
    process = serve(bundle, log, "--engine-silence", str(SILENCE))
    try:
        yield Running(wait_until_ready(process, log), process)
    finally:
        process.kill()
        process.wait()


def calibrate(running: Running, prompt: str) -> None:
    """Calibrate a prompt that is new, for which the server starts the reference."""
    answer = httpx.post(f"{running.url}/v1/calibrations", json={"prompt": prompt}, timeout=READY_WITHIN)
    assert answer.status_code == 200, answer.text
    assert len(running.engines) == 3  # policy, reward model, reference


def test_an_engine_that_started_when_it_was_needed_dies_alone(running: Running) -> None:
    others, failures = running.engines, running.metric("infalign_engine_failures_total")
    calibrate(running, "Hello")
    [reference] = set(running.engines) - set(others)
    reference.kill()
    wait_until(lambda: running.metric("infalign_engine_failures_total") == failures + 1)
    assert running.ready
    assert running.engines == others


def test_an_engine_that_hangs_is_killed_and_started_anew(running: Running) -> None:
    expected, failures = selected(running), running.metric("infalign_engine_failures_total")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(httpx.post, f"{running.url}/v1/best-of-n", json=LONG, timeout=READY_WITHIN)
        wait_until(lambda: running.metric("vllm:num_requests_running") == 16)
        hung, _ = busiest(running)
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


def serve(bundle: Bundle, log: Path, *more: str) -> "subprocess.Popen[bytes]":
    command = [INFALIGN, "serve", str(bundle.path), "--port", "0", "--calibration-store", str(log.with_suffix(".db"))]
    with log.open("w") as stderr:
        return subprocess.Popen([*command, *more], stderr=stderr)


def test_no_engine_outlives_a_server_that_is_killed(running: Running) -> None:
    calibrate(running, "Good evening")
    engines = running.engines
    engines[0].suspend()
    running.process.kill()
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
