"""Requests that are large: refused before they cost anything, read beside others, and never the loss of a candidate."""

import asyncio
from dataclasses import replace
from threading import Event
from typing import Any

import httpx
import pytest

from server.app import ServedBundle, create_app
from server.decoding.reader import SHORT_CHARACTERS
from server.settings import Settings
from tests.fakes import KNOWN, CharacterTokenizer, FakeEngines, fake_served
from tests.unit.server.conftest import client_of
from training.tokenizer import train_tokenizer

pytestmark = pytest.mark.anyio

LONG = "a" * (SHORT_CHARACTERS + 1)
ENDPOINTS = [
    pytest.param("/v1/best-of-n", {}, id="best-of-n"),
    pytest.param("/v1/worst-of-n", {}, id="worst-of-n"),
    pytest.param("/v1/chat/completions", {"stream": True}, id="chat stream"),
    pytest.param("/v1/rewards", {"responses": ["x"] * 16}, id="rewards"),
    pytest.param("/v1/calibrations", {}, id="calibrations"),
]


class CountingTokenizer(CharacterTokenizer):
    """Counts what it reads, and waits where it is told to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.go_on = Event()
        self.go_on.set()

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
        assert isinstance(text, str)
        self.texts.append(text)
        if len(text) > SHORT_CHARACTERS:
            assert self.go_on.wait(30)
        return super().__call__(text, **options)


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return CountingTokenizer()


@pytest.fixture
def served(tokenizer: CountingTokenizer) -> ServedBundle:
    return replace(fake_served(), tokenizers=(tokenizer, {"reward": tokenizer}))


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(("endpoint", "fields"), ENDPOINTS)
async def test_a_long_prompt_is_read_beside_other_requests(
    client: httpx.AsyncClient, tokenizer: CountingTokenizer, endpoint: str, fields: dict[str, Any]
) -> None:
    tokenizer.go_on.clear()
    long = asyncio.create_task(client.post(endpoint, json={"messages": messages(LONG), **fields}))
    while not any(len(text) > SHORT_CHARACTERS for text in tokenizer.texts):
        await asyncio.sleep(0.01)
    assert (await client.get("/health")).status_code == 200
    small = await client.post("/v1/best-of-n", json={"messages": messages(KNOWN), "n": 2})
    assert small.status_code == 200
    assert not long.done()
    tokenizer.go_on.set()
    refusal = await long
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_deadline_holds_while_a_prompt_is_read(
    client: httpx.AsyncClient, tokenizer: CountingTokenizer, engines: FakeEngines
) -> None:
    tokenizer.go_on.clear()
    answer = await client.post("/v1/best-of-n", json={"messages": messages(LONG), "timeout": 0.1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    tokenizer.go_on.set()
    assert not engines.drawn


async def test_a_prompt_that_is_too_long_is_refused_before_its_responses_are_read(
    client: httpx.AsyncClient, tokenizer: CountingTokenizer
) -> None:
    answer = await client.post("/v1/rewards", json={"messages": messages("a" * 300), "responses": ["x"] * 16})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert len(tokenizer.texts) == 2  # once for the policy, once for the reward model


@pytest.mark.parametrize(("endpoint", "fields"), ENDPOINTS)
async def test_what_cannot_fit_is_refused_by_its_length_alone(
    engines: FakeEngines, endpoint: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(["hello"], 300)
    served = replace(fake_served(), tokenizers=(tokenizer, {"reward": tokenizer}))
    app = create_app(Settings(max_n=16, max_body_kib=2048), engines, served)
    monkeypatch.setattr("server.decoding.reader.tokenise", lambda *_: pytest.fail("it was tokenised"))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        answer = await client.post(endpoint, json={"messages": messages(" " * 1_000_000), **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "messages: at least " in error["message"]


class ResponseGrows(CharacterTokenizer):
    """Two tokens for each digit, as a tokenizer that is not the policy's may need."""

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
        assert isinstance(text, str)
        return {"input_ids": [ord(each) for each in "".join(2 * each if each.isdigit() else each for each in text)]}


@pytest.mark.parametrize(
    ("endpoint", "answers"), [("/v1/best-of-n", "selected"), ("/v1/chat/completions", "candidates")]
)
async def test_a_candidate_that_grows_when_it_is_read_again_is_cut_for_the_reward_model(
    endpoint: str, answers: str
) -> None:
    engines = FakeEngines(context=40)
    reads: list[list[int]] = []
    scoring = engines.score

    async def score(tokens: Any) -> list[float]:
        reads.extend(tokens)
        return await scoring(tokens)

    engines.score = score  # type: ignore[method-assign]
    served = replace(fake_served(), tokenizers=(CharacterTokenizer(), {"reward": ResponseGrows()}))
    app = create_app(Settings(), engines, served)
    # "[user]q.[assistant]" are 19 tokens and one ends the turn: 40 leave 20 to "answer 1111111", of 21.
    asked = {"messages": messages("q"), "max_tokens": 20, "seed": 1111111, "return_candidates": True}
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        answer = await client.post(endpoint, json=asked | ({"n": 1} if answers == "selected" else {}))
        assert answer.status_code == 200, answer.text
        [candidate] = answer.json()[answers]
        assert (candidate["text"], candidate["unread_tokens"]) == ("answer 1111111", 1)
        [read] = reads
        assert len(read) == 40
        assert "".join(map(chr, read)).endswith("1.")  # the end of the turn is kept
        brought = await client.post("/v1/rewards", json={"messages": messages("q"), "responses": ["answer 1111111"]})
        assert (brought.status_code, brought.json()["error"]["param"]) == (400, "responses")


async def test_log_probabilities_are_bounded_and_large_answers_are_whole(client: httpx.AsyncClient) -> None:
    asked = {"prompt": "q", "n": 16, "logprobs": 20}
    refusal = await client.post("/v1/best-of-n", json=asked | {"max_tokens": 300})
    error = refusal.json()["error"]
    assert (refusal.status_code, error["param"]) == (400, "logprobs")
    assert "make 100800, accepted: at most 100000" in error["message"]
    whole = await client.post("/v1/best-of-n", json=asked | {"max_tokens": 8, "return_candidates": True})
    assert [len(candidate["logprobs"]) for candidate in whole.json()["candidates"]] == [2] * 16
