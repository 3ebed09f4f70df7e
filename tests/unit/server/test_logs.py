"""Request ids, the line of each request, and the time in which no engine is at work for it."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest

from infalign.procedures import BestOfN
from server.app import create_app
from server.engines import Completion, Delta, Sampling
from server.observability import account as accounts
from server.observability.account import Account
from server.observability.logs import configure_logging
from server.settings import Settings
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root, text = logging.getLogger(), logging.getLogger("infalign.text")
    handlers, levels = root.handlers[:], (root.level, text.level)
    yield root
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    text.setLevel(levels[1])


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def json_lines(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> Lines:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    configure_logging(Settings(log_format="json"))
    monkeypatch.undo()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return lambda: [json.loads(line) for line in written.getvalue().splitlines()]


async def test_an_id_comes_back_and_is_made_where_there_is_none(client: httpx.AsyncClient) -> None:
    given = await client.get("/health", headers={"X-Request-Id": "trace/7:a"})
    assert given.headers["x-request-id"] == "trace/7:a"
    made = {(await client.get("/health")).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    for odd in ("", "two words", "x" * 129, "caf\u00e9"):
        answer = await client.get("/health", headers={"X-Request-Id": odd.encode()})
        assert answer.headers["x-request-id"] != odd
        assert len(answer.headers["x-request-id"]) == 32


async def test_errors_and_streams_have_an_id_too(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    named = {"X-Request-Id": "mine"}
    chat = {"messages": ASKED, "best_of": 2}
    answers = [
        await client.get("/nothing", headers=named),
        await client.post("/v1/best-of-n", json={"n": 0}, headers=named),
        await client.post("/v1/chat/completions", json=chat | {"stream": True}, headers=named),
    ]
    engines.bug = True
    answers.append(await client.post("/v1/chat/completions", json=chat, headers=named))
    assert [answer.status_code for answer in answers] == [404, 400, 200, 500]
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}
    assert answers[-1].json()["error"]["code"] == "internal_error"
    assert 'infalign_requests_total{code="500",route="/v1/chat/completions"} 1.0' in (await client.get("/metrics")).text


async def test_probes_have_no_line_though_they_are_red(
    client: httpx.AsyncClient, engines: FakeEngines, json_lines: Lines
) -> None:
    engines.dead = True
    assert (await client.get("/ready")).status_code == 503
    await client.get("/metrics")
    assert not [line for line in json_lines() if line["logger"] == "infalign.access"]


async def test_each_request_is_one_line_without_text(client: httpx.AsyncClient, json_lines: Lines) -> None:
    body = {"messages": ASKED, "n": 4, "seed": 0}
    await client.post("/v1/best-of-n", json=body, headers={"X-Request-Id": "one"})
    await client.post("/v1/chat/completions", json={"messages": ASKED, "best_of": 2, "stream": True, "seed": 0})
    await client.post("/v1/best-of-n", json=body | {"n": 0})
    await client.get("/health")
    await client.get("/v1/nothing/at/all")
    best, streamed, refused, unmatched = json_lines()
    assert best["message"] == "POST /v1/best-of-n 200"
    assert (best["logger"], best["level"]) == ("infalign.access", "INFO")
    assert best["time"].startswith("20")
    assert (best["procedure"], best["n"], best["model"]) == ("best-of-4", 4, "fake")
    assert (best["request_id"], best["status"], best["client_gone"]) == ("one", 200, False)
    assert 0 < best["overhead_ms"] <= best["seconds"] * 1000
    assert (streamed["procedure"], streamed["client_gone"]) == ("best-of-2", False)
    assert (refused["status"], refused["route"]) == (400, "/v1/best-of-n")
    assert "procedure" not in refused
    assert "overhead_ms" not in refused
    assert (unmatched["route"], unmatched["status"]) == ("unmatched", 404)
    for line in (best, streamed, refused):
        assert KNOWN not in json.dumps(line)
        assert "answer" not in json.dumps(line)


async def test_other_lines_of_a_request_carry_its_id(
    client: httpx.AsyncClient, engines: FakeEngines, json_lines: Lines
) -> None:
    engines.bug = True
    await client.post("/v1/best-of-n", json={"messages": ASKED}, headers={"X-Request-Id": "seven"})
    error, line = json_lines()
    assert (error["level"], error["logger"], error["request_id"]) == ("ERROR", "infalign.server", "seven")
    assert "LookupError" in error["message"]
    assert (line["status"], line["request_id"]) == (500, "seven")


@pytest.mark.parametrize(
    ("endpoint", "fields", "texts"),
    [
        ("best-of-n", {"n": 4, "top": 2}, ["answer 3", "answer 2"]),
        ("chat/completions", {"worst_of": 4}, ["answer 0"]),
        ("chat/completions", {"best_of": 4, "n": 2, "stream": True}, ["answer 3", "answer 2"]),
    ],
)
async def test_text_is_logged_only_where_the_operator_says_so(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], endpoint: str, fields: dict[str, Any], texts: list[str]
) -> None:
    settings = Settings(log_format="json", log_text=True, log_level="warning")
    app = create_app(settings, engines := FakeEngines(), fake_served())
    configure_logging(settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        await client.post(f"/v1/{endpoint}", json={"messages": ASKED, "seed": 0} | fields)
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in logged if "logger" in line]  # others are the audit log's
    assert line["logger"] == "infalign.text"
    assert KNOWN in line["prompt"]
    assert line["selected"] == texts


async def test_lines_of_text_show_the_same_fields(
    client: httpx.AsyncClient, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings())
    await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 3}, headers={"X-Request-Id": "five"})
    line = next(line for line in capsys.readouterr().err.splitlines() if "infalign.access" in line)
    assert "POST /v1/best-of-n 200" in line
    for shown in ("request_id=five", "procedure=best-of-3", "n=3", "status=200", "client_gone=False"):
        assert f" {shown}" in line
    assert line.count("request_id") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_is_said_to_be_gone(
    app: Any, engines: FakeEngines, json_lines: Lines, stream: bool
) -> None:
    engines.hang = True
    body = json.dumps({"prompt": "x", "best_of": 3, "stream": stream}).encode()
    arrived = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if arrived:
            return arrived.pop()
        while engines.running < 3:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "server": ("test", 80),
        "client": ("test", 1),
        "scheme": "http",
        "root_path": "",
    }
    await asyncio.wait_for(app(scope, receive, send), 10)
    (line,) = json_lines()
    assert line["client_gone"] is True
    assert line["procedure"] == "best-of-3"


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(accounts, "perf_counter", clock)
    return clock


def test_overhead_is_the_time_without_any_call(clock: Clock) -> None:
    account = Account("a")
    clock.now += 1  # reading the request
    account.begin_call()
    clock.now += 10
    account.begin_call()  # at the same time
    clock.now += 10
    account.end_call()
    clock.now += 10
    account.end_call()
    clock.now += 2  # ranking
    account.begin_call()
    clock.now += 5  # still running
    assert account.durations() == (pytest.approx(38), pytest.approx(3))


async def test_overhead_of_an_answer_leaves_the_engines_out(clock: Clock) -> None:
    class Slow(FakeEngines):
        """Engines for which time passes, and a reader that needs some too."""

        async def generate(
            self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
        ) -> Completion:
            clock.now += 100
            return await super().generate(prompt, sampling, listen)

        async def score(self, tokens: Sequence[list[int]]) -> list[float]:
            clock.now += 100
            return await super().score(tokens)

    app = create_app(Settings(), engines := Slow(), fake_served())
    reader = app.state.serving.decoder.client.reader
    read = reader.read

    async def reading(*given: Any) -> Any:
        clock.now += 0.004
        return await read(*given)

    reader.read = reading
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 3})
        await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 0})
        text = (await client.get("/metrics")).text
    assert 'infalign_own_overhead_seconds_count{procedure="best-of-n"} 1.0' in text
    assert 'infalign_own_overhead_seconds_bucket{le="0.003",procedure="best-of-n"} 0.0' in text
    assert 'infalign_own_overhead_seconds_bucket{le="0.005",procedure="best-of-n"} 1.0' in text


def test_without_a_request_nothing_is_kept() -> None:
    with accounts.engine_call():
        accounts.note_decoding(BestOfN(2), 2, "fake", "x")
        accounts.note_selected(["y"])
    assert accounts.current_account.get() is None
