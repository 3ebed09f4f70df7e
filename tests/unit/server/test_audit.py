"""One line for every worst-of-n call, and no text in any log."""

import asyncio
import json
import logging
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infalign.errors import InvalidValue
from infalign.templates import Rendering, prompt_key
from server.app import create_app
from server.middleware.audit import AuditLog
from server.settings import Settings
from tests.asgi import request
from tests.bad_requests import BEST, CHAT, TEXT, WORST
from tests.fakes import FakeEngines, fake_served
from tests.keys import bearer, keys_file
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
SECRET = "xylophone"
ASKED = [{"role": "user", "content": SECRET}]
SAFETY = bearer("safety")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def app(engines: FakeEngines, tmp_path: Path, path: Path) -> AsyncIterator[Any]:
    app = create_app(Settings(max_n=16, keys=keys_file(tmp_path), audit_log=path), engines, fake_served())
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        yield app


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert SECRET not in text
    assert "answer" not in text
    return [json.loads(line) for line in text.splitlines()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_line_says_who_asked_for_what_and_what_became_of_it(app: Any, path: Path) -> None:
    body = {"messages": ASKED, "n": 4, "seed": 23, "user": 'red team\n"7"'}
    await request(WORST, body, SAFETY | {"x-request-id": "r-1"}).through(app)
    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line.pop("lowest_quantile") == pytest.approx((3.5 + 0.5) / 11)
    assert line == {
        "request_id": "r-1",
        "key": "safety",
        "user": 'red team\n"7"',
        "model": "fake",
        "procedure": "worst-of-4",
        "n": 4,
        "prompt_key": prompt_key(Rendering((f"[user]{SECRET}.[assistant]",))),
        "unfiltered": False,
        "status": 200,
    }


async def test_every_way_to_the_worst_and_the_unfiltered_is_noted_and_nothing_else(
    client: httpx.AsyncClient, path: Path
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": ASKED, "worst_of": 2}),
        (CHAT, {"messages": ASKED, "worst_of": 2, "stream": True}),
        (CHAT, {"messages": ASKED, "model": "fake:worst-of-2"}),
        (TEXT, {"prompt": f"[user]{SECRET}.[assistant]", "model": "auto:worst-of-2"}),
        (BEST, {"messages": ASKED, "n": 2}),
        (TEXT, {"prompt": SECRET, "return_candidates": True}),
    ]
    for endpoint, body in asked:
        assert (await client.post(endpoint, json=body, headers=SAFETY)).status_code == 200
    noted = lines(path)
    assert [(line["procedure"], line["unfiltered"], line["status"], line["user"]) for line in noted] == [
        *[("worst-of-2", False, 200, None)] * 4,
        ("standard", True, 200, None),
    ]
    assert len({line["prompt_key"] for line in noted[:4]}) == 1
    assert all(0 < line["lowest_quantile"] < 1 for line in noted)


async def test_refused_and_failed_calls_are_noted_too(
    client: httpx.AsyncClient, engines: FakeEngines, path: Path
) -> None:
    worst, streamed = {"messages": ASKED, "n": 2}, {"messages": ASKED, "worst_of": 2, "stream": True}
    await client.post(WORST, json=worst, headers=bearer("app"))
    await client.post(WORST, json=worst | {"n": 100}, headers=SAFETY)
    engines.fail_scoring_after = 1
    await client.post(WORST, json=worst, headers=SAFETY)
    engines.fail_scoring_after = 1
    answer = await client.post(CHAT, json=streamed, headers=SAFETY)
    assert answer.status_code == 200
    assert "not_ready" in answer.text
    engines.fault = RuntimeError(SECRET)
    await client.post(WORST, json=worst, headers=SAFETY)
    noted = lines(path)
    assert [(line["key"], line["status"]) for line in noted] == [
        ("app", 403),
        ("safety", 400),
        ("safety", 503),
        ("safety", 503),
        ("safety", 500),
    ]
    assert {line["lowest_quantile"] for line in noted} == {None}


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_a_client_that_left_is_noted(app: Any, engines: FakeEngines, path: Path, fields: dict[str, Any]) -> None:
    async def scored_but_one(tokens: Any) -> list[float]:
        if engines.drawn and (scored := engines.fail_scoring_after):
            engines.fail_scoring_after = scored - 1
            return [1.0]
        await asyncio.sleep(3600)
        raise AssertionError

    engines.fail_scoring_after = 1
    engines.score = scored_but_one  # type: ignore[method-assign]
    left = request(CHAT, {"messages": ASKED, "worst_of": 2, **fields}, SAFETY)
    answering = asyncio.create_task(left.through(app))
    async with asyncio.timeout(10):
        while engines.fail_scoring_after or (fields and not left.answering.is_set()):
            await asyncio.sleep(0)
    left.hung_up.set()
    await answering
    (line,) = lines(path)
    assert (line["status"], line["lowest_quantile"]) == (499, None)


async def test_a_rotated_file_is_opened_anew(client: httpx.AsyncClient, path: Path) -> None:
    for _ in range(2):
        await client.post(WORST, json={"messages": ASKED, "n": 1}, headers=SAFETY)
        assert len(lines(path)) == 1
        assert mode(path) == 0o600
        os.rename(path, path.with_suffix(".old"))


def test_the_file_is_its_owners_alone_and_another_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, before = tmp_path / "audit.jsonl", os.umask(0)
    try:
        AuditLog(path).close()
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert not caplog.records
    path.chmod(0o644)
    AuditLog(path).close()
    assert f"{path} can be read or written by others" in caplog.text
    assert mode(path) == 0o644


async def test_without_a_file_lines_go_to_stderr(capsys: pytest.CaptureFixture[str], engines: FakeEngines) -> None:
    app = create_app(Settings(), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        assert (await client.post(WORST, json={"messages": ASKED, "n": 2})).status_code == 200
    line = json.loads(capsys.readouterr().err)
    assert (line["key"], line["procedure"]) == ("anonymous", "worst-of-2")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="--audit-log"):
        AuditLog(tmp_path)


async def test_a_line_the_disk_does_not_take_goes_to_the_log(
    engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(audit_log=Path("/dev/full")), engines, fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        assert (await client.post(WORST, json={"messages": ASKED, "n": 2})).status_code == 200
    assert "the audit log cannot be written" in caplog.text
    assert '"procedure": "worst-of-2"' in caplog.text


async def test_no_text_reaches_the_logs(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    good: dict[str, Any] = {"messages": ASKED, "return_candidates": True, "seed": 7}

    async def ask(endpoint: str, status: int, **fields: Any) -> None:
        answer = await client.post(endpoint, json=good | fields, headers=SAFETY)
        assert answer.status_code == status

    await ask(WORST, 200)
    await ask(CHAT, 200, stream=True)
    await ask(WORST, 400, temperature=SECRET)
    await ask(CHAT, 400, messages=[{"role": SECRET, "content": 5}])
    await ask(WORST, 404, model=SECRET)
    await ask("/v1/rewards", 400, responses=[SECRET])
    engines.fail_scoring_after = 1
    await ask(WORST, 503)
    engines.fail_scoring_after = 1
    await ask(CHAT, 200, best_of=4, stream=True)
    assert "unexpected error" not in caplog.text
    engines.fault, engines.fail_scoring_after = RuntimeError(f"cannot read {SECRET}, answer 7"), None
    await ask(WORST, 500)
    await ask(CHAT, 500, stream=True)
    for told in ("unexpected error in POST /v1/worst-of-n", "builtins.RuntimeError", "raise self.fault"):
        assert told in caplog.text  # enough to find the place
    for text in (caplog.text, *capsys.readouterr()):
        assert SECRET not in text
        assert "answer 7" not in text


async def test_an_unexpected_error_within_a_stream_is_told_without_its_text(
    client: httpx.AsyncClient, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(tokens: Any) -> list[float]:
        raise RuntimeError(f"cannot score {SECRET}")

    engines.score = broken  # type: ignore[method-assign]
    answer = await client.post(CHAT, json={"messages": ASKED, "best_of": 2, "stream": True}, headers=SAFETY)
    assert answer.status_code == 200
    assert '"internal_error"' in answer.text
    assert "unexpected error in a stream" in caplog.text
    assert SECRET not in caplog.text + answer.text
