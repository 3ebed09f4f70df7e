"""What clients do to connections and to the form of a request, short of what the request says."""

import gzip
import json
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.connections import Connections
from server.process import bind
from server.settings import Settings
from tests.field.processes import Running, launched, read_all
from tests.keys import bearer, keys_file

BODY = b'{"prompt": "hi", "n": 1}'
JSON = b"content-type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
LAST = b"connection: close\r\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ("--idle-timeout", "1", "--max-connections", "40", "--max-header-kib", "8", "--max-body-kib", "64")
    with launched(tmp_path_factory.mktemp("server"), *options, "--deadline", "3") as running:
        yield running


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


def post(*headers: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    return b"POST /v1/best-of-n HTTP/%b\r\nhost: localhost\r\n%b\r\n%b" % (version, b"".join(headers), body)


def length(body: bytes = BODY) -> bytes:
    return b"content-length: %d\r\n" % len(body)


# What is sent, and the statuses of the answers.
FORMS = {
    "a request": (post(JSON, length(), LAST), [200]),
    "chunks": (post(JSON, LAST, b"transfer-encoding: chunked\r\n", body=b"18\r\n%b\r\n0\r\n\r\n" % BODY), [200]),
    "HTTP/1.0": (post(JSON, length(), version=b"1.0"), [200]),
    "the whole address": (b"GET http://127.0.0.1/v1/models HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % LAST, [200]),
    "an address without a path": (b"GET http://[ HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % LAST, [200]),  # the page at /
    "a slash at the end": (b"GET /v1/models/ HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % LAST, [200]),
    "a slash at the end of a POST": (post(JSON, length(), LAST).replace(b"best-of-n", b"best-of-n/"), [200]),
    "an offer of HTTP/2": (
        post(JSON, length(), b"connection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\nhttp2-settings: A\r\n"),
        [200],
    ),
    "an offer of a WebSocket": (HEALTH + b"connection: upgrade, close\r\nupgrade: websocket\r\n\r\n", [200]),
    "several before the first answer": ((HEALTH + b"\r\n") * 3 + HEALTH + LAST + b"\r\n", [200] * 4),
    "several and then garbage": ((HEALTH + b"\r\n") * 3 + b"garbage\r\n\r\n", [200, 200, 200, 400]),
    "an empty line": (b"\r\n", [400]),
    "garbage": (b"garbage\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [400]),
    "no Host": (b"GET /health HTTP/1.1\r\n\r\n", [400]),
    "a bad length": (post(JSON, b"content-length: +5\r\n"), [400]),
    "two lengths": (post(JSON, length(), b"transfer-encoding: chunked\r\n", body=b"0\r\n\r\n"), [400]),
    "a broken chunk": (post(JSON, b"transfer-encoding: chunked\r\n", body=b"5\r\nabcde\r\nzz\r\n"), [400]),
    "too large headers": (HEALTH + b"x: %b\r\n%b\r\n" % (b"y" * 9_000, LAST), [431]),
    "a too large path": (b"GET /%b HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % (b"y" * 9_000, LAST), [431]),
    "a header without end": (HEALTH + b"x: " + b"y" * 5_000_000, [431]),
    "a too large body": (post(JSON, length(b" " * 70_000), LAST, body=b" " * 70_000), [413]),
    "a body without end": (post(JSON, b"content-length: 100\r\n", body=b"{"), [408]),
    "chunks without end": (post(JSON, b"transfer-encoding: chunked\r\n", body=b"5\r\nabcde\r\n"), [408]),
    "an unknown path": (b"GET /nothing HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % LAST, [404]),
    "a method that is not there": (b"PUT /v1/models HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % LAST, [405]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_request_has_its_answer_and_one_line(running: Running, form: str) -> None:
    sent, expected = FORMS[form]
    before = len(running.log)
    received = running.exchange(sent)
    assert statuses(received) == expected, received
    if expected[-1] >= 400:
        assert set(json.loads(received.rpartition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    visible = len(expected) - expected.count(200) * (b"/health" in sent)  # whose lines are of level debug
    running.exchange(b"GET /after HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")

    def lines() -> list[str]:
        return [line for line in running.log[before:].splitlines() if "infalign.access" in line]

    running.wait_for(lambda: len(lines()) > visible)
    assert len(lines()) == visible + 1, lines()


def test_small_answers_are_sent_at_once() -> None:
    """Asyncio switches Nagle's algorithm off only for sockets that name their protocol."""
    with bind(Settings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_stream_to_http_1_0_is_not_chunked(running: Running) -> None:
    body = BODY.replace(b"}", b', "stream": true}')
    head, _, events = running.exchange(post(JSON, length(body), body=body, version=b"1.0")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"event: candidate\ndata: ")
    assert b"event: answer\n" in events


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\n", HEALTH + b"\r\n", post(JSON, b"content-length: 9\r\n", body=b"")[:-40]],
    ids=["nothing", "a first line", "a request and no other", "half of the headers"],
)
def test_a_connection_without_a_request_is_closed(running: Running, sent: bytes) -> None:
    assert statuses(running.exchange(sent)) == ([200] if sent == HEALTH + b"\r\n" else [])


def test_a_header_that_trickles_is_closed(running: Running) -> None:
    with running.connect() as connection:
        connection.settimeout(0.2)
        connection.send(HEALTH)
        ended = False
        while not ended:
            try:
                connection.send(b"x: y\r\n")
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True


def test_a_body_that_was_refused_may_not_go_on_for_ever(running: Running) -> None:
    with running.connect() as connection, suppress(ConnectionError):
        connection.send(post(JSON, b"transfer-encoding: chunked\r\n", body=b"").replace(b"/v1/best-of-n", b"/nothing"))
        while True:
            connection.send(b"400\r\n%b\r\n" % (b" " * 1024))


def test_a_body_may_come_slowly(running: Running) -> None:
    """Each second brings more than a KiB; in all it takes longer than the connection may be idle."""
    body = BODY.ljust(6_000)
    with running.connect() as connection:
        connection.sendall(post(JSON, length(body), LAST, body=b""))
        for start in range(0, len(body), 1_000):
            time.sleep(0.5)
            connection.sendall(body[start : start + 1_000])
        assert statuses(read_all(connection)) == [200]


def test_a_crowd_of_idle_connections_keeps_nobody_out(running: Running) -> None:
    with ExitStack() as held:
        crowd = [held.enter_context(running.connect()) for _ in range(200)]
        for connection in crowd[::2]:
            connection.send(b"GET /health HTTP/1.1\r\n")
        assert statuses(running.exchange(HEALTH + LAST + b"\r\n")) == [200]
        assert all(read_all(connection) == b"" for connection in crowd)
    assert running.log.count("--max-connections") <= 10


def test_requests_that_are_answered_are_not_pushed_out(tmp_path: Path) -> None:
    hanging = b'{"prompt": "hang ", "n": 1, "timeout": 4}'
    with launched(tmp_path, "--max-connections", "3") as running, ExitStack() as held:
        busy = [held.enter_context(running.connect()) for _ in range(2)]
        for connection in busy:
            connection.sendall(post(JSON, length(hanging), LAST, body=hanging))
        in_flight = HEALTH.replace(b"/health", b"/metrics") + LAST + b"\r\n"
        running.wait_for(lambda: b"requests_in_flight 2.0" in running.exchange(in_flight))
        crowd = [held.enter_context(running.connect()) for _ in range(20)]
        assert statuses(running.exchange(HEALTH + LAST + b"\r\n")) == [200]
        assert [statuses(read_all(connection)) for connection in busy] == [[504], [504]]
        del crowd


def test_a_client_that_reads_nothing_is_cut_off(running: Running) -> None:
    body = b'{"prompt": "long ", "n": 1}'
    server = psutil.Process(running.process.pid)
    with running.connect() as connection:
        connection.sendall(post(JSON, length(body), body=body))
        running.wait_for(lambda: "n=1 " in running.log.splitlines()[-1])
        mine = connection.getsockname()[1]
        running.wait_for(lambda: mine not in [one.raddr.port for one in server.net_connections() if one.raddr])
        assert len(read_all(connection)) < 32 << 20


def test_few_file_descriptors_are_enough(tmp_path: Path) -> None:
    with launched(tmp_path, files=200) as running, ExitStack() as held:
        assert "fit the limit of 200 file descriptors" in running.log
        for _ in range(230):
            held.enter_context(running.connect())
        assert statuses(running.exchange(HEALTH + LAST + b"\r\n")) == [200]
        assert "out of system resource" not in running.log
        assert len(running.log) < 20_000


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 524_288, 65_536, 2048),
        (1024, 4096, 4096, 1984),
        (100_000, 100_000, None, 2048),
        (1024, resource.RLIM_INFINITY, 65_536, 2048),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 2048),
        (64, 64, None, 1),
    ],
)
def test_the_soft_limit_of_descriptors_is_raised_as_far_as_it_goes(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, connections: int
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert Connections(Settings()).limit == connections
    assert limits == ([(raised, hard)] if raised else [])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=lambda end: end.name)
@pytest.mark.parametrize("start", ["while it starts", "while it serves"])
def test_sighup_does_nothing_and_other_signals_end_it_cleanly(tmp_path: Path, start: str, end: signal.Signals) -> None:
    options, until = (["--slow-start"], "preparing") if start == "while it starts" else ([], "ready, ")
    with launched(tmp_path, *options, until=until) as running:
        for _ in range(3):
            running.process.send_signal(signal.SIGHUP)
        if not options:
            running.wait_for(lambda: running.log.count("SIGHUP") >= 1)
            assert statuses(running.exchange(HEALTH + LAST + b"\r\n")) == [200]
        running.process.send_signal(end)
        assert running.process.wait(60) == 0
        assert "Traceback" not in running.log


def test_sighup_reads_the_keys_again(tmp_path: Path) -> None:
    path = keys_file(tmp_path, "app")
    with launched(tmp_path, "--keys", str(path)) as running:
        models = f"http://127.0.0.1:{running.port}/v1/models"
        assert httpx.get(models, headers=bearer("app")).status_code == 200
        keys_file(tmp_path, "root")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for(lambda: "read again: 1 keys" in running.log)
        assert httpx.get(models, headers=bearer("app")).status_code == 401
        assert httpx.get(models, headers=bearer("root")).status_code == 200


# Headers, body, status, what the message names.
SECRET = b'{"prompt": "xylophone", "n": 1}'
CONTENTS: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "no content type": ({}, SECRET, 400, "content-type: got 'none', accepted: application/json"),
    "a form": ({"content-type": "application/x-www-form-urlencoded"}, SECRET, 400, "content-type: got"),
    "plain text": ({"content-type": "text/plain"}, SECRET, 400, "content-type: got 'text/plain'"),
    "text/json": ({"content-type": "text/json"}, SECRET, 400, "content-type: got 'text/json'"),
    "multipart": ({"content-type": "multipart/form-data; boundary=x"}, SECRET, 400, "content-type: got"),
    "an empty one": ({"content-type": ""}, SECRET, 400, "content-type: got"),
    "a charset": ({"content-type": "application/json; charset=utf-8"}, SECRET, 200, ""),
    "capitals": ({"content-type": "Application/JSON"}, SECRET, 200, ""),
    "+json": ({"content-type": "application/vnd.api+json"}, SECRET, 200, ""),
    "UTF-16": ({"content-type": "application/json"}, SECRET.decode().encode("utf-16"), 200, ""),
    "gzip": (
        {"content-type": "application/json", "content-encoding": "gzip"},
        gzip.compress(SECRET),
        400,
        "content-encoding: got 'gzip'",
    ),
    "Latin-1": (
        {"content-type": "application/json; charset=latin-1"},
        b'{"prompt": "caf\xe9"}',
        400,
        "body: not UTF-8 from byte 15 on",
    ),
    "too deep": ({"content-type": "application/json"}, b"[" * 60_000, 400, "body: nested too deeply"),
    "too many digits": (
        {"content-type": "application/json"},
        b'{"prompt": "xylophone", "n": %b}' % (b"1" * 5_000),
        400,
        "body: a number of more digits",
    ),
    "no JSON": ({"content-type": "application/json"}, SECRET[:-1], 400, "body: not JSON"),
    "nothing": ({"content-type": "application/json"}, b"", 400, "body: got None"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("content", CONTENTS)
async def test_a_body_that_cannot_be_read_is_told_why_and_not_repeated(client: httpx.AsyncClient, content: str) -> None:
    headers, body, status, message = CONTENTS[content]
    answer = await client.post("/v1/best-of-n", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 400:
        error: dict[str, Any] = answer.json()["error"]
        assert error["message"].startswith(message)
        assert error["param"] == message.partition(":")[0]
        assert error["code"] == "invalid_value"
        assert "xylophone" not in answer.text
        assert "caf" not in answer.text
