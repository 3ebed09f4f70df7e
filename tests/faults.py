"""Requests and engines for tests that break something."""

import time
from typing import Any

import httpx
import psutil

from tests.integration.conftest import Running

ASKED = [{"role": "user", "content": "My bicycle has weak brakes. What should I do?"}]

NORMAL = {"messages": ASKED, "n": 4, "seed": 1}

LONG = {"prompt": "Hello", "n": 16, "seed": 1, "max_tokens": 600, "min_tokens": 600}
"""Seconds of generation before anything is scored."""


def selected(running: Running) -> Any:
    answer = httpx.post(f"{running.url}/v1/best-of-n", json=NORMAL, timeout=120)
    assert answer.status_code == 200, answer.text
    return [answer.json()["selected"][0][field] for field in ("text", "seed", "quantile")]


def busiest(running: Running) -> tuple[psutil.Process, list[psutil.Process]]:
    """The engine that works most now, and the others."""
    found = running.engines
    before = [sum(one.cpu_times()[:2]) for one in found]
    time.sleep(1)
    worked = [sum(one.cpu_times()[:2]) - start for one, start in zip(found, before, strict=True)]
    most = found[worked.index(max(worked))]
    return most, [one for one in found if one is not most]
