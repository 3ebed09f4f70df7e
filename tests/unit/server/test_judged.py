"""Requests whose N is beyond what a judge supports: they are warned of, or refused."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from infalign import Estimate, InvalidValue, JudgeRecord, Support
from infalign.manifest import Alignment
from server.app import ServedBundle, create_app
from server.settings import Settings
from tests.fakes import SCORER, STRONG, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
SCORES = {1: Estimate(1.0, 0.9, 1.1), 8: Estimate(2.0, 1.9, 2.1)}
RECORD = JudgeRecord(
    judge="classifier",
    prompts=40,
    draws=12,
    support={"best-of-n": Support(6, True, 4, SCORES), "worst-of-n": Support(12, False, 9, SCORES)},
)
JUDGED = STRONG.model_copy(update={"judged": RECORD})
MESSAGES = [{"role": "user", "content": "Why?"}]
BEST = (
    "{field}: {n} is more than 6, the largest N that a judge supports with fake: beyond it the judge's score of the "
    "selected candidate falls, and it is highest at 4"
)


@asynccontextmanager
async def serve(
    alignment: Alignment = JUDGED, served: ServedBundle | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    engines = FakeEngines()
    app = create_app(
        Settings(**{"max_n": 16} | settings), engines, served or fake_served(alignment=alignment, scorer=SCORER)
    )
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


def warning(field: str, n: int) -> dict[str, str]:
    return {"code": "n_beyond_judge", "param": field, "message": BEST.format(field=field, n=n)}


async def test_an_answer_warns_of_an_n_beyond_the_record() -> None:
    async with serve() as client:
        answer = await client.post("/v1/best-of-n", json={"messages": MESSAGES, "n": 7})
        assert answer.json()["warnings"] == [warning("n", 7)]
        assert answer.headers["x-infalign-warning"] == BEST.format(field="n", n=7)
        metrics = (await client.get("/metrics")).text
    assert 'infalign_beyond_judge_total{action="warned",procedure="best-of-n"} 1.0' in metrics


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/best-of-n", {"n": 6}),
        ("/v1/worst-of-n", {"n": 12}),
        ("/v1/best-of-n", {"n": 12, "temperature": 0}),  # all candidates are the same
        ("/v1/chat/completions", {"n": 8}),  # standard decoding selects nothing
        ("/v1/chat/completions", {"best_of": 4}),
        ("/v1/chat/completions", {"model": "fake:controlled-8x2"}),
    ],
)
async def test_what_the_judge_supports_or_was_not_asked_about_is_not_warned_of(path: str, body: dict[str, Any]) -> None:
    async with serve(limit_n=True) as client:
        answer = await client.post(path, json={"messages": MESSAGES, **body})
    assert answer.status_code == 200
    assert "warnings" not in answer.json()
    assert "x-infalign-warning" not in answer.headers


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"best_of": 8}, "best_of"),
        ({"model": "fake:best-of-8"}, "model"),
        ({"best_of": 8, "target_quantile": 0.5}, "best_of"),
        ({"model": "fake:best-of-8@0.5"}, "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_clients_are_warned_in_body_and_header(body: dict[str, Any], field: str, stream: bool) -> None:
    async with serve() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": stream, **body})
    assert answer.headers["x-infalign-warning"] == BEST.format(field=field, n=8)
    last = json.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
    assert last["warnings"] == [warning(field, 8)]


async def test_a_stream_of_events_warns_in_its_answer() -> None:
    async with serve() as client:
        answer = await client.post("/v1/best-of-n", json={"messages": MESSAGES, "n": 7, "stream": True})
    assert answer.headers["x-infalign-warning"] == BEST.format(field="n", n=7)
    assert json.loads(answer.text.split("data: ")[-1])["warnings"] == [warning("n", 7)]


async def test_beyond_what_the_judge_has_seen_the_reason_is_another() -> None:
    async with serve() as client:
        answer = await client.post("/v1/worst-of-n", json={"messages": MESSAGES, "n": 13})
    assert answer.json()["warnings"][0]["message"] == (
        "n: 13 is more than 12, the largest N that a judge supports with fake: the judge was asked about no more"
    )


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/best-of-n", {"messages": MESSAGES, "n": 7}, "n"),
        ("/v1/chat/completions", {"messages": MESSAGES, "best_of": 7}, "best_of"),
        ("/v1/completions", {"prompt": "Why?", "model": "fake:best-of-7", "stream": True}, "model"),
    ],
)
async def test_the_record_is_a_limit_where_the_operator_wants_it(path: str, body: dict[str, Any], field: str) -> None:
    async with serve(limit_n=True) as client:
        answer = await client.post(path, json=body)
        metrics = (await client.get("/metrics")).text
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": f"{field}: got 7, accepted: at most 6 with fake (--limit-n), as beyond it the judge's score of the "
        "selected candidate falls, and it is highest at 4",
        "type": "invalid_request_error",
        "param": field,
        "code": "invalid_value",
    }
    assert 'infalign_beyond_judge_total{action="refused",procedure="best-of-n"} 1.0' in metrics


async def test_models_show_the_record() -> None:
    best, worst = {"n": 6, "falls": True, "peak": 4}, {"n": 12, "falls": False, "peak": 9}
    async with serve() as client:
        cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
        assert cards["fake"]["supported_n"] == {"best-of-n": best, "worst-of-n": worst}
        assert cards["fake:best-of-16"]["supported_n"] == {"best-of-n": best}
        assert "supported_n" not in cards["fake:controlled-4x4"]
        assert (await client.get("/v1/models/fake:worst-of-3")).json()["supported_n"] == {"worst-of-n": worst}
    async with serve(STRONG) as client:
        assert all("supported_n" not in card for card in (await client.get("/v1/models")).json()["data"])


async def test_names_beyond_the_limit_are_no_models() -> None:
    async with serve(limit_n=True) as client:
        names = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
        assert {"fake:best-of-4", "fake:worst-of-8"} <= set(names)
        assert not {"fake:best-of-8", "fake:worst-of-16"} & set(names)
        answer = await client.get("/v1/models/fake:best-of-7")
    assert answer.status_code == 404
    assert "accepted: N or K of at most 6" in answer.json()["error"]["message"]


async def test_budgets_keep_the_limit() -> None:
    async with serve(limit_n=True) as client:
        body = {"prompts": ["a 1", "b 9"], "total": 20}
        assert max(row["n"] for row in (await client.post("/v1/budgets", json=body)).json()["prompts"]) <= 6
        answer = await client.post("/v1/budgets", json={**body, "most": 7})
    assert answer.json()["error"]["message"] == "most: got 7, accepted: at most 6"


def test_a_limit_without_a_record_is_refused() -> None:
    with pytest.raises(InvalidValue, match="--limit-n: got 'true', accepted: only with a bundle that a judge"):
        create_app(Settings(limit_n=True), FakeEngines(), fake_served())


async def test_the_log_names_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "infalign.access")
    async with serve() as client:
        await client.post("/v1/best-of-n", json={"messages": MESSAGES, "n": 7})
        await client.post("/v1/best-of-n", json={"messages": MESSAGES, "n": 2})
    beyond, within = (record.fields for record in caplog.records if record.name == "infalign.access")  # type: ignore[attr-defined]
    assert beyond["warnings"] == "n_beyond_judge"
    assert "warnings" not in within


async def test_the_reference_in_the_policys_place_has_no_record() -> None:
    served = replace(fake_served(alignment=JUDGED), policies={"fake-reference": "standard"})
    async with serve(served=served) as client:
        answer = await client.post("/v1/best-of-n", json={"messages": MESSAGES, "n": 7})
    assert "warnings" not in answer.json()
