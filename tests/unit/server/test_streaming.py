"""Streams: live text under standard decoding, candidates as they happen otherwise, errors, clients that leave."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from server.decoding.jobs import CandidateDelta
from server.engines import Delta, TokenLogprob
from server.routes.choices import Chunks, CompletionForm
from tests.asgi import Exchange
from tests.fakes import KNOWN, FakeEngines
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]


def events(text: str) -> list[tuple[str, Any]]:
    """(event, data) of a body of server-sent events; data is JSON but for [DONE]."""
    found = []
    for block in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            raw = fields["data"]
            found.append((fields.get("event", "message"), raw if raw == "[DONE]" else json.loads(raw)))
    return found


async def chunks(client: httpx.AsyncClient, endpoint: str, **body: Any) -> list[Any]:
    answer = await client.post(f"/v1/{endpoint}", json={"stream": True, **body})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, done = [data for _, data in events(answer.text)]
    assert done == "[DONE]"
    return parts


async def test_standard_decoding_streams_text_as_it_grows(client: httpx.AsyncClient) -> None:
    body = {"messages": ASKED, "n": 2, "seed": 3, "logprobs": True, "stream_options": {"include_usage": True}}
    *parts, usage = await chunks(client, "chat/completions", **body)
    texts = {0: "", 1: ""}
    for part in parts:
        choice = part["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "answer 3", 1: "answer 4"}
    roles = [part["choices"][0]["index"] for part in parts if "role" in part["choices"][0]["delta"]]
    assert sorted(roles) == [0, 1]
    ends = [part["choices"][0] for part in parts if part["choices"][0]["finish_reason"]]
    assert [(end["index"], end["reward"]) for end in ends] == [(0, 3), (1, 4)]
    assert parts[-1]["procedure"] == "standard"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert {part["id"] for part in parts} == {usage["id"]}


async def test_best_of_n_tells_of_candidates_and_then_the_winner(client: httpx.AsyncClient) -> None:
    parts = await chunks(client, "chat/completions", messages=ASKED, best_of=4, seed=0)
    told = [part["candidate"] for part in parts if "candidate" in part]
    assert sorted((one["event"], one["index"]) for one in told) == sorted(
        (event, index) for event in ("finished", "scored") for index in range(4)
    )
    assert all("text" not in one for one in told)
    assert {one["index"]: one["reward"] for one in told if one["event"] == "scored"} == {0: 0, 1: 1, 2: 2, 3: 3}
    for part in parts:  # plain clients read the first choice of every chunk
        assert part["choices"][0]["index"] == 0
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
    assert text == "answer 3"
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert parts[-1]["choices"][0]["quantile"] > 0.3
    shown = await chunks(client, "chat/completions", messages=ASKED, best_of=2, seed=0, return_candidates=True)
    assert {part["candidate"]["text"] for part in shown if "candidate" in part} == {"answer 0", "answer 1"}
    assert len(shown[-1]["candidates"]) == 2


def test_offsets_of_tokens_go_on_from_chunk_to_chunk() -> None:
    stream = Chunks(CompletionForm(), {}, live=True, show_standing=False, show_text=False)
    tokens = [TokenLogprob("So", -0.1, ()), TokenLogprob(" it", -0.2, ()), TokenLogprob(" is", -0.3, ())]
    parts = [Delta("So it", tuple(tokens[:2])), Delta(" is", tuple(tokens[2:]))]
    sent = [chunk for place in (0, 1) for part in parts for chunk in stream.from_event(CandidateDelta(place, part))]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in sent] == [[0, 2], [5]] * 2


async def test_text_completions_stream_too(client: httpx.AsyncClient) -> None:
    live = await chunks(client, "completions", prompt="x", seed=5, logprobs=1)
    assert "".join(part["choices"][0]["text"] for part in live) == "answer 5"
    ranked = await chunks(client, "completions", prompt="x", seed=5, worst_of=3, n=2)
    ends = [part["choices"][0] for part in ranked if part["choices"][0]["finish_reason"]]
    assert [(end["index"], end["reward"]) for end in ends] == [(0, 5), (1, 6)]


@pytest.mark.parametrize("endpoint", ["best-of-n", "worst-of-n"])
async def test_the_dedicated_endpoints_stream_the_same_events(client: httpx.AsyncClient, endpoint: str) -> None:
    body = {"messages": ASKED, "n": 3, "seed": 1}
    streamed = events((await client.post(f"/v1/{endpoint}", json=body | {"stream": True})).text)
    whole = (await client.post(f"/v1/{endpoint}", json=body)).json()
    assert [name for name, _ in streamed] == ["candidate"] * 6 + ["answer"]
    last = streamed[-1][1]
    for answer in (last, whole):
        del answer["id"], answer["created"]
    assert last == whole


async def test_what_fails_before_the_first_event_is_an_ordinary_error(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    long = await client.post("/v1/chat/completions", json={"messages": ASKED, "stream": True, "max_tokens": 10_000})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    engines.dead = True
    gone = await client.post("/v1/chat/completions", json={"messages": ASKED, "stream": True})
    assert gone.status_code == 503


async def test_what_fails_later_is_an_event_and_nothing_follows(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.fail_scoring_after = 1
    answer = await client.post("/v1/chat/completions", json={"messages": ASKED, "best_of": 4, "stream": True})
    *_, (name, last) = events(answer.text)
    assert (answer.status_code, name) == (200, "error")
    assert last["error"]["code"] == "not_ready"
    assert engines.running == 0


async def test_a_client_that_leaves_a_stream_frees_its_candidates(app: Any, engines: FakeEngines) -> None:
    engines.slow = set(range(2, 8))
    body = {"prompt": "x", "n": 8, "seed": 0, "stream": True}
    left = Exchange("/v1/best-of-n", [json.dumps(body).encode()])
    streaming = asyncio.create_task(left.through(app))
    await left.answering.wait()
    left.hung_up.set()
    await streaming
    for _ in range(10):
        await asyncio.sleep(0)
    assert left.status == 200
    assert engines.running == 0
    async with client_of(app) as client:
        assert "infalign_requests_in_flight 0.0" in (await client.get("/metrics")).text
