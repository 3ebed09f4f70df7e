"""What is said of a model that is neither a directory nor on a hub that answers, with a hub on loopback."""

import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import ClassVar

import pytest
from huggingface_hub import constants

from infalign import InvalidValue
from training import hub
from training.checkpoints import read_model
from training.named_policies import read_positions
from training.tokenizer import read_tokenizer

COMMIT, OLDER = 40 * "a", 40 * "b"
"""Revisions: of the hub, and of the cache."""


class Hub(BaseHTTPRequestHandler):
    """Answers a name by what it stands for, as the hub does."""

    answers: ClassVar[dict[str, tuple[int, str]]] = {
        "no/where": (401, "RepoNotFound"),
        "no/gate": (403, "GatedRepo"),
        "no/config": (404, "EntryNotFound"),
        "no/luck": (503, ""),
        "no/token": (401, "Other"),
        "no/revision": (404, "RevisionNotFound"),
        "here/is": (200, ""),
    }
    asked: ClassVar[list[tuple[str, str | None]]] = []
    woken: ClassVar[Event] = Event()

    def do_HEAD(self) -> None:
        name = self.path.removeprefix("/").partition("/resolve/")[0]
        self.asked.append((name, self.headers["authorization"]))
        if name == "no/answer":
            self.woken.wait(30)
        status, code = self.answers.get(name, (200, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models, in a process that may ask the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    hub._ask_once.cache_clear()
    return tmp_path / "hub"


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    """What the hub is asked for, and with which token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    Hub.asked.clear()
    Hub.woken.clear()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Hub.asked
    Hub.woken.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def unreachable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens


def put(home: Path, name: str) -> None:
    """Put a model into the cache, as far as its config."""
    model = home / f"models--{name.replace('/', '--')}"
    for folder in ("refs", "blobs", f"snapshots/{OLDER}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(OLDER)
    (model / "snapshots" / OLDER / "config.json").write_text("{}")


def refusal(name: str) -> str:
    """Why a model cannot be had, in one line."""
    with pytest.raises(InvalidValue) as refused:
        hub.check_model(name, "model", "a causal LM")
    assert str(refused.value).startswith(f"model: got '{name}', accepted: a causal LM, by directory or hub id; ")
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/where", r"there is no such directory, and no such model at http://127.0.0.1:\d+, unless it is private"),
        ("no/gate", r"the model is gated: ask for access at http://127.0.0.1:\d+/no/gate, then .*HF_TOKEN"),
        ("no/revision", r"the model has no revision main at http://127.0.0.1:\d+"),
        ("no/token", r"http://127.0.0.1:\d+ refuses: "),
    ],
)
def test_a_model_that_the_hub_refuses_is_one_clear_line(
    asked: list[tuple[str, str | None]], name: str, message: str
) -> None:
    assert re.search(message, refusal(name))
    refusal(name)
    assert asked == [(name, "Bearer hf_mine")], "once in a process"


@pytest.mark.parametrize("name", ["here/is", "no/config", "no/luck"])
def test_what_the_hub_may_still_give_is_left_to_the_library(asked: list[tuple[str, str | None]], name: str) -> None:
    hub.check_model(name, "model", "a causal LM")
    assert len(asked) == 1


def test_a_hub_that_cannot_be_reached_is_said_at_once_with_what_is_cached(unreachable: None, home: Path) -> None:
    start = time.monotonic()
    assert "the hub http://127.0.0.1:9 cannot be reached (" in (message := refusal("no/where"))
    assert message.endswith(f"and the local cache holds no model ({home})")
    for name in ("b/two", "a/one"):
        put(home, name)
    hub._ask_once.cache_clear()
    assert refusal("no/where").endswith("and the local cache holds a/one, b/two")
    for number in range(10):
        put(home, f"c/{number}")
    hub._ask_once.cache_clear()
    assert refusal("no/where").endswith("c/7 and 2 more")
    assert time.monotonic() - start < hub.SECONDS


def test_a_hub_that_does_not_answer_is_given_up(
    asked: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    assert "cannot be reached (" in refusal("no/answer")


def test_a_cached_model_is_used_without_a_hub(
    unreachable: None, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, "a/one")
    hub.check_model("a/one", "model", "a causal LM")
    assert capsys.readouterr().err == "http://127.0.0.1:9 cannot be reached; models are read from the local cache\n"
    assert constants.is_offline_mode(), "the library must not try either"


def test_the_hub_is_not_asked_where_that_is_forbidden(
    asked: list[tuple[str, str | None]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put(home, "a/one")
    assert refusal("no/where").endswith("the hub is not asked (HF_HUB_OFFLINE), and the local cache holds a/one")
    hub.check_model("a/one", "model", "a causal LM")
    assert asked == []


def test_directories_and_paths_are_not_looked_up(asked: list[tuple[str, str | None]], tmp_path: Path) -> None:
    hub.check_model(tmp_path, "model", "a causal LM")
    assert refusal(str(tmp_path / "nothing")).endswith("there is no such directory")
    assert refusal("../nothing").endswith("there is no such directory")
    assert asked == []


def test_whatever_reads_a_model_asks_first(unreachable: None) -> None:
    class Nothing:
        @staticmethod
        def from_pretrained(*_: object, **__: object) -> None:
            pytest.fail("the library was asked")

    for read in (
        lambda: read_model(Nothing, "no/where", "key", "a causal LM"),
        lambda: read_tokenizer("no/where", "key", "a causal LM"),
        lambda: read_positions("no/where"),
    ):
        with pytest.raises(InvalidValue, match=r"the hub http://127.0.0.1:9 cannot be reached"):
            read()


def test_the_hub_says_what_a_revision_stands_for(asked: list[tuple[str, str | None]], tmp_path: Path) -> None:
    for source in ("here/is", "here/is@main", "here/is@v1"):
        assert hub.pin_model(source, "model", "a causal LM") == f"here/is@{COMMIT}"
    assert hub.pin_model(f"here/is@{OLDER}", "model", "a causal LM") == f"here/is@{OLDER}", "a commit stands for itself"
    assert len(asked) == 3, "each revision once"
    assert hub.pin_model(str(tmp_path), "model", "a causal LM") == str(tmp_path)
    with pytest.raises(InvalidValue, match=r"model: got 'no/luck', .* whose revision the hub names"):
        hub.pin_model("no/luck", "model", "a causal LM")


def test_the_cache_says_it_where_the_hub_does_not(unreachable: None, home: Path) -> None:
    put(home, "a/one")
    assert hub.pin_model("a/one", "model", "a causal LM") == f"a/one@{OLDER}"
    assert hub.split_source(f"a/one@{OLDER}") == ("a/one", OLDER)
    hub.check_model(f"a/one@{OLDER}", "model", "a causal LM")
    assert "the local cache holds a/one" in refusal("a/one@v2")
