"""One record is one line, no client begins or breaks one, and no line holds what clients wrote unless it may."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.middleware.audit import AuditLog, ProbeCall, Trail
from server.observability.lines import BURST, PERIOD, RepeatFilter, TextFormatter, json_formatter
from tests.field.processes import Running, launched
from tests.keys import bearer, keys_file

FORGED = "2026-01-01 00:00:00,000 INFO infalign.access: GET /forged 200"
HOSTILE = {
    "a new line": f"x\n{FORGED}",
    "a carriage return": f"x\r{FORGED}",
    "no space": "x\nforged",
    "form feed": "x\x0cforged",
    "file separator": "x\x1cforged",
    "C1 next line": "x\x85forged",
    "C1 control sequence": "x\x9b31mforged",
    "line separator": "x\u2028forged",
    "paragraph separator": "x\u2029forged",
    "ANSI colour": "x\x1b[31mforged",
    "cursor up": "x\x1b[1A\x1b[2Kforged",
    "NUL": "x\x00forged",
    "backspace": "x\x08\x08forged",
    "DEL": "x\x7fforged",
    "text from right to left": "x\u202eforged",
    "a lone surrogate": "x\ud800forged",
    "a field of the log": "x status=500 caller=admin",
    "quotes": "x' status=500 'y",
}


def record(message: str, fields: dict[str, Any], error: Exception | None = None) -> logging.LogRecord:
    about = (type(error), error, None) if error else None
    made = logging.LogRecord("infalign.text", logging.INFO, "", 0, "%s", (message,), about)
    made.fields = fields
    return made


PLACES = {
    "the message": lambda text: record(text, {}),
    "a field": lambda text: record("m", {"prompt": text}),
    "a list": lambda text: record("m", {"selected": [text]}),
    "an exception": lambda text: record("m", {}, ValueError(text)),
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_a_record_is_one_line_of_printable_text(hostile: str, place: str) -> None:
    made = PLACES[place](HOSTILE[hostile])
    line = TextFormatter().format(made)
    assert line.isprintable()
    assert re.match(r"[\d-]+ [\d:,]+ INFO infalign\.text: ", line)
    encoded = json_formatter().format(made)
    assert encoded.isascii()
    assert encoded.isprintable()
    assert HOSTILE[hostile] in "".join(map(str, json.loads(encoded).values())) or place in ("a list", "an exception")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_field_ends_where_it_seems_to(hostile: str) -> None:
    line = TextFormatter().format(record("m", {"prompt": HOSTILE[hostile]}))
    quoted = re.fullmatch(r".* prompt=(\'(?:[^\'\\]|\\.)*\'|\"(?:[^\"\\]|\\.)*\"|[^\s=]+)", line)
    assert quoted, line


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_audit_line_is_one_line(tmp_path: Path, hostile: str) -> None:
    trail = Trail()
    trail.call = ProbeCall("key", HOSTILE[hostile], "model", "worst-of-2", 2, "hash")
    log = AuditLog(tmp_path / "audit")
    log.write(trail, 200, "id")
    log.close()
    (line,) = (tmp_path / "audit").read_text(encoding="utf-8").splitlines()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["user"] == HOSTILE[hostile]


def test_what_repeats_is_logged_a_few_times_and_then_counted() -> None:
    now = 0.0
    repeats = RepeatFilter(lambda: now)

    def passes(message: str, name: str = "asyncio") -> logging.LogRecord | None:
        made = logging.LogRecord(name, logging.ERROR, "", 0, message, (), None)
        return made if repeats.filter(made) else None

    logged = [passes(f"socket.accept() out of system resource, fd={fd}") for fd in range(100_000)]
    assert sum(one is not None for one in logged) == BURST
    assert passes("something else")
    assert all(passes("GET /v1/models 200", "infalign.access") for _ in range(BURST + 1))
    now = PERIOD
    after = passes("socket.accept() out of system resource, fd=3")
    assert after
    assert after.fields == {"dropped": 100_000 - BURST}  # type: ignore[attr-defined]


SECRET = "xylophone"
STRAY = f"stderr {SECRET}\n{FORGED}\n\x1b[31m{{}}\nTraceback (most recent call last):\nValueError: {SECRET}\n"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("options", [[], ["--log-text"]], ids=["without text", "with text"])
def test_what_libraries_write_is_lines_of_the_log(tmp_path: Path, form: str, options: list[str]) -> None:
    with launched(tmp_path, "--log-format", form, *options) as running:
        assert "preparing" in running.log, "before the first request there is nothing to hide"
        ask(running, STRAY)
        running.wait_for(lambda: running.log.count("ValueError") >= 2)
        running.process.terminate()
        assert running.process.wait(60) == 0
    lines = [line for line in running.log.split("\n") if line and not line.startswith("serving ")]
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith(FORGED[:10])]
    begin = r"\{.*\}$" if form == "json" else r"20\d\d-\d\d-\d\d \S+ [A-Z]+ [\w.]+: "
    assert not [line for line in lines if not re.match(begin, line)]
    assert (SECRET in running.log) == ("GET /forged" in running.log) == bool(options)
    assert "ValueError (--log-text shows" in running.log or options
    assert "wrote 9 bytes" in running.log or options


def test_a_crash_of_the_server_is_seen(tmp_path: Path) -> None:
    with launched(tmp_path) as running:
        with pytest.raises(httpx.TransportError):
            ask(running, "crash ")
        assert running.process.wait(60) == -6
    assert "Fatal Python error: Aborted" in running.log
    assert "fake_server.py" in running.log


def test_xgrammar_cannot_forge_a_line() -> None:
    pytest.importorskip("xgrammar")
    schema = json.dumps({"$ref": f"{SECRET}\n{FORGED}\x1b[31m"})
    program = (
        "import contextlib, sys, xgrammar\n"
        "from server.observability.logs import configure_logging\n"
        "from server.observability.output import Output\n"
        "from server.settings import Settings\n"
        "with Output(log_text=False) as output:\n"
        "    configure_logging(Settings(), output.console); output.quotes_lines = False\n"
        "    with contextlib.suppress(Exception): xgrammar.Grammar.from_json_schema(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, schema], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "infalign.output: a library wrote" in done.stderr
    assert SECRET not in done.stderr
    assert "forged" not in done.stderr


def ask(running: Running, prompt: str) -> httpx.Response:
    body = {"prompt": prompt, "n": 1}
    return httpx.post(f"http://127.0.0.1:{running.port}/v1/best-of-n", json=body, timeout=60)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guarded")
    with launched(folder, "--keys", str(keys_file(folder)), "--max-body-kib", "8") as running:
        yield running


CHAT = {"messages": [{"role": "user", "content": SECRET}]}
# Method, path, name of the key, body, status.
REQUESTS: dict[str, tuple[str, str, str | None, Any, int]] = {
    "answered": ("POST", "/v1/best-of-n", "safety", CHAT, 200),
    "worst of n": ("POST", "/v1/worst-of-n", "safety", CHAT, 200),
    "streamed": ("POST", "/v1/chat/completions", "safety", CHAT | {"stream": True, "best_of": 2}, 200),
    "several failing candidates": ("POST", "/v1/completions", "safety", {"prompt": "bug ", "best_of": 8}, 500),
    "no key": ("POST", "/v1/best-of-n", None, CHAT, 401),
    "an unknown key": ("GET", "/v1/models", "nobody", None, 401),
    "a key without the role": ("POST", "/v1/worst-of-n", "app", CHAT, 403),
    "an unknown model": ("POST", "/v1/best-of-n", "safety", CHAT | {"model": "x\ny"}, 404),
    "an unknown path": ("GET", f"/v1/{SECRET}", "safety", None, 404),
    "a path with a new line": ("GET", "/v1/x%0A2026-01-01%20forged", "safety", None, 404),
    "a bad field": ("POST", "/v1/best-of-n", "safety", CHAT | {"n": 0}, 400),
    "no JSON": ("POST", "/v1/best-of-n", "safety", b"{", 400),
    "too large": ("POST", "/v1/best-of-n", "safety", b" " * 9_000, 413),
    "out of time": ("POST", "/v1/completions", "safety", {"prompt": "hang ", "timeout": 0.1}, 504),
    "another method": ("DELETE", "/v1/models", "safety", None, 405),
    "options": ("OPTIONS", "/v1/models", "safety", None, 405),
    "head": ("HEAD", "/v1/models", "safety", None, 200),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_each_request_is_one_line_of_the_access_log(guarded: Running, request_: str) -> None:
    method, path, key, body, status = REQUESTS[request_]
    sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {"x-request-id": "mine", "content-type": "application/json"} | (bearer(key) if key else {})
    before = len(guarded.log)
    with httpx.Client(base_url=f"http://127.0.0.1:{guarded.port}", timeout=60) as client:
        assert client.request(method, path, headers=headers, **sent).status_code == status
        client.get("/after")

    def lines() -> list[str]:
        return [line for line in guarded.log[before:].splitlines() if " infalign.access: " in line]

    guarded.wait_for(lambda: len(lines()) > 1)
    assert [f" {status} request_id=mine " in line for line in lines()].count(True) == 1
    assert len(lines()) == 2
    assert SECRET not in guarded.log[before:]
    assert not re.search("^2026-01-01 forged", guarded.log[before:], re.MULTILINE)
