"""Requests that clients of similar servers send, and what each of them gets here."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

from server.app import create_app
from server.engines import Completion, Delta, EnginesDown, Refused, TokenLogprob
from server.routes.streaming import json_event
from server.settings import Settings
from tests.bad_requests import BEST, CALIBRATIONS, CHAT, REWARDS, TEXT, WORST
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.streams import events, strict
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
SECRET = "a xylophone"
U = [{"role": "user", "content": KNOWN}]
ANSWERED: dict[str, Any] = {"role": "assistant", "content": "An answer."}


def turn(**fields: Any) -> list[dict[str, Any]]:
    """A conversation of one turn with these fields too."""
    return [{"role": "user", "content": KNOWN, **fields}]


def after(**fields: Any) -> list[dict[str, Any]]:
    """A conversation with an earlier answer that has these fields too."""
    return [*U, ANSWERED | fields, *U]


def parts(*given: Any) -> list[dict[str, Any]]:
    """A conversation of one turn with this content."""
    return [{"role": "user", "content": list(given)}]


PART = {"type": "text", "text": KNOWN}

IGNORED: dict[str, tuple[str, dict[str, Any]]] = {
    # Fields that change no text.
    "store": (CHAT, {"store": False}),
    "metadata": (CHAT, {"metadata": {"run": "7"}}),
    "service_tier": (CHAT, {"service_tier": "auto"}),
    "safety_identifier": (CHAT, {"safety_identifier": "hash"}),
    "prompt_cache_key": (CHAT, {"prompt_cache_key": "key"}),
    "prompt_cache_retention": (CHAT, {"prompt_cache_retention": "24h"}),
    "parallel_tool_calls": (CHAT, {"parallel_tool_calls": True}),
    "modalities": (CHAT, {"modalities": ["text"]}),
    "store of a completion": (TEXT, {"store": True}),
    "echo": (TEXT, {"echo": False}),
    "suffix": (TEXT, {"suffix": ""}),
    "null": (CHAT, {"best_of": None, "response_format": None, "nothing": None}),
    # Tools that are none.
    "no tools": (CHAT, {"tools": [], "tool_choice": "none"}),
    "no tools, automatically": (CHAT, {"tools": [], "tool_choice": "auto"}),
    "no functions": (CHAT, {"functions": [], "function_call": "none"}),
    # Defaults that ask for nothing.
    "no alternatives": (CHAT, {"top_logprobs": 0}),
    "empty stream_options": (CHAT, {"stream_options": {}}),
    "stream_options that ask nothing": (
        CHAT,
        {"stream_options": {"include_usage": False, "include_obfuscation": False}},
    ),
    # Forms of the same.
    "one limit under two names": (CHAT, {"max_tokens": 8, "max_completion_tokens": 8}),
    "whole floats": (CHAT, {"max_tokens": 8.0, "n": 1.0, "top_logprobs": 0.0}),
    "name": (CHAT, {"messages": turn(name="ann")}),
    "type beside role": (CHAT, {"messages": turn(type="text")}),
    "parsed": (CHAT, {"messages": turn(parsed={"a": 1})}),
    "text parts": (CHAT, {"messages": parts(PART)}),
    "cache_control": (CHAT, {"messages": parts(PART | {"cache_control": {"type": "ephemeral"}})}),
    "one prompt in a list": (TEXT, {"prompt": ["x"]}),
}


@pytest.mark.parametrize(("endpoint", "fields"), IGNORED.values(), ids=IGNORED.keys())
async def test_a_field_that_asks_for_nothing_changes_nothing(
    client: httpx.AsyncClient, endpoint: str, fields: dict[str, Any]
) -> None:
    plain = {"seed": 3} | ({"messages": U} if endpoint == CHAT else {"prompt": "x"})
    whole, other = [await client.post(endpoint, json=body) for body in (plain, plain | fields)]
    assert (whole.status_code, other.status_code) == (200, 200), other.text
    for answer in (first := whole.json(), second := other.json()):
        del answer["id"], answer["created"]
    assert first == second


EMPTY = {
    "annotations": [],
    "tool_calls": [],
    "refusal": "",
    "audio": None,
    "function_call": None,
    "reasoning_content": "",
    "reasoning": None,
    "tool_call_id": "",
}


@pytest.mark.parametrize(("field", "value"), [*EMPTY.items(), *((field, None) for field in EMPTY)])
@pytest.mark.parametrize("endpoint", [CHAT, BEST, WORST, REWARDS, CALIBRATIONS])
async def test_an_answer_can_be_sent_back_as_it_came(
    client: httpx.AsyncClient, endpoint: str, field: str, value: Any
) -> None:
    fields = {"responses": ["1"]} if endpoint == REWARDS else {}
    answer = await client.post(endpoint, json={"messages": after(**{field: value}), **fields})
    assert answer.status_code == 200, answer.text


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # Conversations.
    "last turn of the assistant": (CHAT, {"messages": [*U, ANSWERED]}, "messages", "continue_final_message: true"),
    "last turn of the assistant, best-of-n": (BEST, {"messages": [*U, ANSWERED]}, "messages", "assistant"),
    "last turn of the assistant, rewards": (
        REWARDS,
        {"messages": [*U, ANSWERED], "responses": ["x"]},
        "messages",
        "assistant",
    ),
    "last turn of the assistant, calibration": (CALIBRATIONS, {"messages": [*U, ANSWERED]}, "messages", "assistant"),
    "image": (
        CHAT,
        {"messages": parts(PART, {"type": "image_url", "image_url": {"url": SECRET}})},
        "messages.0.content.1",
        '"type": "text"',
    ),
    "input_text": (
        CHAT,
        {"messages": parts({"type": "input_text", "text": SECRET})},
        "messages.0.content.0",
        '"type": "text"',
    ),
    "list of strings": (CHAT, {"messages": parts(SECRET)}, "messages.0.content.0", '"type": "text"'),
    "misspelt key of a part": (
        CHAT,
        {"messages": parts(PART | {"texts": SECRET})},
        "messages.0.content.0.texts",
        "text?",
    ),
    "content that is no text": (CHAT, {"messages": turn(content=5)}, "messages.0.content", "a valid string or a valid"),
    "no part": (CHAT, {"messages": parts()}, "messages.0.content", "at least 1 item"),
    "calls of a user": (CHAT, {"messages": turn(tool_calls=[CALL])}, "messages.0.tool_calls", "the role assistant"),
    "a user's result": (CHAT, {"messages": turn(tool_call_id=SECRET)}, "messages.0.tool_call_id", "the role tool"),
    "a call that is none": (
        CHAT,
        {"messages": after(tool_calls=[{"id": "1", "function": SECRET}])},
        "messages.1.tool_calls.0.function",
        "a valid dictionary",
    ),
    "no content and no call": (CHAT, {"messages": after(content=None)}, "messages.1.content", "with tool_calls"),
    "annotations": (CHAT, {"messages": after(annotations=[SECRET])}, "messages.1.annotations", "does not support"),
    "a user's reasoning": (CHAT, {"messages": turn(reasoning=SECRET)}, "messages.0.reasoning", "the role assistant"),
    # Prompts.
    "two prompts": (TEXT, {"prompt": [SECRET, "y"]}, "prompt", "a request has one prompt"),
    "token ids": (TEXT, {"prompt": [1, 2]}, "prompt", "token ids are not understood"),
    "lists of token ids": (TEXT, {"prompt": [[1, 2]]}, "prompt", "token ids are not understood"),
    "no prompt in a list": (TEXT, {"prompt": []}, "prompt", "a request has one prompt"),
    "two prompts, best-of-n": (BEST, {"prompt": [SECRET, "y"]}, "prompt", "a request has one prompt"),
    "empty prompt in a list": (TEXT, {"prompt": [""]}, "prompt", "at least 1 character"),
    # Fields that would change the text.
    "tools": (CHAT, {"messages": U, "tools": [TOOL]}, "tools", "--tool-parser"),
    "a tool that is none": (CHAT, {"messages": U, "tools": [CALL]}, "tools.0.function.arguments", "no such key"),
    "functions": (CHAT, {"messages": U, "functions": [CALL]}, "functions", "does not support"),
    "a tool must be called": (CHAT, {"messages": U, "tool_choice": "required"}, "tool_choice", "'none' or 'auto'"),
    "audio": (CHAT, {"messages": U, "modalities": ["text", "audio"]}, "modalities.1", "'text'"),
    "echo": (TEXT, {"prompt": "x", "echo": True}, "echo", "False"),
    "suffix": (TEXT, {"prompt": "x", "suffix": SECRET}, "suffix", "does not support"),
    "usage without stream": (
        CHAT,
        {"messages": U, "stream_options": {"include_usage": True}},
        "stream_options",
        "stream: true",
    ),
    # Numbers.
    "half a token": (CHAT, {"messages": U, "max_tokens": 16.5}, "max_tokens", "got 16.5"),
    "two limits": (
        CHAT,
        {"messages": U, "max_tokens": 3, "max_completion_tokens": 4},
        "max_completion_tokens",
        "the same as max_tokens, which is 3",
    ),
    "a long number": (CHAT, {"messages": U, "n": 10**4000}, "n", "less than"),
    "a number as text": (CHAT, {"messages": U, "n": "8"}, "n", "a valid integer"),
    "many stops": (CHAT, {"messages": U, "stop": [SECRET] * 5000}, "stop", "at most 16 items, not 5000"),
    # N and the name of the model.
    "n above N of the name": (CHAT, {"messages": U, "model": "fake:best-of-4", "n": 8}, "n", "at most 4"),
    "n above N of the name, worst": (TEXT, {"prompt": "x", "model": "fake:worst-of-4", "n": 5}, "n", "worst-of-4"),
    "n above best_of": (CHAT, {"messages": U, "best_of": 4, "n": 8}, "n", "at most 4"),
    "n above worst_of": (CHAT, {"messages": U, "worst_of": 4, "n": 8}, "n", "at most 4"),
    "top above N of the name": (BEST, {"messages": U, "model": "fake:best-of-4", "top": 5}, "top", "at most 4"),
    "top above the default": (WORST, {"messages": U, "top": 9}, "top", "at most 8"),
    "min_candidates above N of the name": (
        BEST,
        {"messages": U, "model": "fake:best-of-4", "min_candidates": 5},
        "min_candidates",
        "at most 4",
    ),
    "the name says worst": (BEST, {"messages": U, "model": "fake:worst-of-4"}, "model", "'fake:worst-of-4'"),
    # Misspelt or unknown.
    "no hint from far away": (CHAT, {"messages": U, "storage": SECRET}, "storage", "known: model, "),
    "reasoning_effort": (CHAT, {"messages": U, "reasoning_effort": "low"}, "reasoning_effort", "known: model, "),
    "misspelt": (CHAT, {"messages": U, "temprature": 1}, "temprature", "did you mean temperature?"),
    "misspelt prompt": (TEXT, {"promt": SECRET}, "promt", "did you mean prompt?"),
    "a name like a union's": (CHAT, {"messages": U, "list[int]": 1}, "list[int]", "no such key"),
    # Text that an error must not repeat.
    "responses": (REWARDS, {"prompt": "x", "responses": SECRET}, "responses", "a valid list"),
    "a response": (REWARDS, {"prompt": "x", "responses": [[SECRET]]}, "responses.0", "a valid string"),
    "user": (CHAT, {"messages": U, "user": SECRET * 50}, "user", "got text of 550 characters"),
    "schema": (
        CHAT,
        {"messages": U, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SECRET}}},
        "response_format.json_schema.schema",
        "a valid dictionary",
    ),
    "a body that is text": (CHAT, SECRET, "body", "object"),
    "messages that are text": (CHAT, {"messages": SECRET}, "messages", "a valid list"),
}


@pytest.mark.parametrize(("endpoint", "body", "param", "message"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_refusal_says_what_is_accepted_and_repeats_no_text(
    client: httpx.AsyncClient, endpoint: str, body: Any, param: str, message: str
) -> None:
    answer = await client.post(endpoint, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), answer.text
    assert error["message"].startswith(f"{param}: got ")
    assert message in error["message"]
    assert "known: ;" not in error["message"] + ";"
    assert SECRET not in error["message"]
    assert len(error["message"]) < 600


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "x" * 500])
async def test_a_body_that_is_not_called_json_is_asked_for_by_its_header(
    client: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = await client.post(CHAT, content=json.dumps({"messages": turn(content=SECRET)}), headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "content-type")
    assert "accepted: application/json" in error["message"]
    assert SECRET not in error["message"]


async def test_a_body_in_another_encoding_has_an_error_with_a_code(client: httpx.AsyncClient) -> None:
    body = json.dumps({"prompt": "é"}, ensure_ascii=False).encode("latin-1")
    answer = await client.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body")
    assert answer.json()["error"]["code"] == "invalid_value"
    assert "UTF-8" in answer.json()["error"]["message"]


async def test_a_developer_speaks_as_the_system_does(client: httpx.AsyncClient) -> None:
    keys = [
        (await client.post(CALIBRATIONS, json={"messages": [{"role": role, "content": "Be brief."}, *U]})).json()
        for role in ("system", "developer")
    ]
    assert keys[0]["prompt_key"] == keys[1]["prompt_key"]


@pytest.mark.parametrize(("endpoint", "kind"), [(BEST, "best"), (WORST, "worst")])
async def test_a_name_says_n_where_the_request_does_not(client: httpx.AsyncClient, endpoint: str, kind: str) -> None:
    named = {"messages": U, "model": f"fake:{kind}-of-4", "return_candidates": True}
    for body, n in ((named, 4), (named | {"n": 4, "top": 4}, 4), (named | {"model": "fake"}, 8)):
        answer = (await client.post(endpoint, json=body)).json()
        assert (answer["procedure"], len(answer["candidates"])) == (f"{kind}-of-{n}", n)
    few = await client.post(CHAT, json={"messages": U, "model": f"fake:{kind}-of-4", "n": 3})
    assert len(few.json()["choices"]) == 3


async def test_a_model_has_a_card_under_every_name_that_requests_may_use(client: httpx.AsyncClient) -> None:
    for card in (await client.get("/v1/models")).json()["data"]:
        assert (await client.get(f"/v1/models/{card['id']}")).json() == card
    for name in ("fake:best-of-3", "fake%3Aworst-of-16", "auto"):
        assert (await client.get(f"/v1/models/{name}")).status_code == 200
    for name in ("gpt-4", "fake:best", "fake:best-of-17", "fake:best-of-" + "9" * 5000, "x" * 5000):
        answer = await client.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert len(answer.json()["error"]["message"]) < 500


async def test_head_is_answered_wherever_get_is(client: httpx.AsyncClient, app: Any) -> None:
    paths = [route.path for route in app.routes if isinstance(route, APIRoute) and "GET" in route.methods]
    assert {"/health", "/ready", "/v1/models", "/v1/models/{name}", "/metrics", "/docs"} <= set(paths)
    for path in (*(path.format(name="fake") for path in paths), "/openapi.json", "/v1/models/gpt-4", "/nothing"):
        got, asked = await client.get(path), await client.head(path)
        assert got.status_code == asked.status_code, path
        assert got.headers.keys() == asked.headers.keys(), path
        assert got.headers["content-type"] == asked.headers["content-type"]
        assert not asked.content


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/nothing", "not_found"),
        ("GET", CHAT, "method_not_allowed"),
        ("GET", "/" + "x" * 5000, "not_found"),
    ],
)
async def test_every_envelope_has_a_code(client: httpx.AsyncClient, method: str, path: str, code: str) -> None:
    error = (await client.request(method, path)).json()["error"]
    assert error["code"] == code
    assert len(error["message"]) < 600


async def test_a_long_name_of_a_bundle_or_policy_is_refused(tmp_path: Path) -> None:
    app = create_app(Settings(bundles=tmp_path), FakeEngines(), fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        loaded = await client.post("/v1/adapters", json={"bundle": "x" * 300})
        unloaded = await client.delete("/v1/adapters/" + "x" * 5000)
    assert (loaded.status_code, loaded.json()["error"]["param"]) == (400, "bundle")
    assert (unloaded.status_code, unloaded.json()["error"]["param"]) == (404, "model")
    for answer in (loaded, unloaded):
        assert len(answer.json()["error"]["message"]) < 500


@pytest.mark.parametrize(
    ("fields", "why", "param"),
    [
        ({"logit_bias": {"999": 1}}, "token_id(s) [999] in logit_bias contain out-of-vocab token ids", "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "Failed to transform json schema", "response_format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_only_the_engine_can_refuse_names_its_field(
    client: httpx.AsyncClient, engines: FakeEngines, fields: dict[str, Any], why: str, param: str, stream: bool
) -> None:
    engines.fault = Refused(f"{param}: {why}", param)
    answer = await client.post(CHAT, json={"messages": U, "best_of": 4, "stream": stream, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"] == f"{param}: {why}"


# What theory is of.


async def test_a_partial_answer_has_the_theory_of_the_candidates_that_there_are(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    generate = engines.generate

    async def fail_some(prompt: Any, sampling: Any, listen: Any = None) -> Completion:
        if sampling.seed >= 7:
            raise EnginesDown("this draw is lost")
        return await generate(prompt, sampling, listen)

    engines.generate = fail_some  # type: ignore[method-assign]
    body = {"messages": U, "n": 10, "seed": 0, "min_candidates": 7}
    best = (await client.post(BEST, json=body)).json()
    worst = (await client.post(WORST, json=body)).json()
    assert (best["procedure"], best["missing"]["asked"]) == ("best-of-10", 10)
    assert best["theory"]["n"] == worst["theory"]["n"] == 7
    assert best["theory"]["expected_quantile"] == pytest.approx(7 / 8)
    assert worst["theory"]["expected_quantile"] == pytest.approx(1 / 8)
    assert best["theory"]["kl_bound"] == pytest.approx(1.0887674)  # log 7 - 6/7


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_k": 1}, {"min_p": 1.0}])
async def test_greedy_decoding_says_that_its_candidates_are_one(
    client: httpx.AsyncClient, greedy: dict[str, Any]
) -> None:
    best = (await client.post(BEST, json={"messages": U, "n": 4, **greedy})).json()
    assert best["greedy"] is True
    assert best["theory"] == {"n": 1, "expected_quantile": 0.5, "kl_bound": 0}
    for fields in ({"n": 4}, {"n": 2, "best_of": 4}):
        chat = (await client.post(CHAT, json={"messages": U, **fields, **greedy})).json()
        assert chat["greedy"] is True
        assert len(chat["choices"]) == fields["n"]
    stream = await client.post(CHAT, json={"messages": U, "n": 4, "stream": True, **greedy})
    assert json.loads(stream.text.split("data: ")[-2])["greedy"] is True
    alone = (await client.post(CHAT, json={"messages": U, **greedy})).json()
    drawn = (await client.post(BEST, json={"messages": U, "n": 4})).json()
    assert "greedy" not in alone
    assert "greedy" not in drawn
    assert drawn["theory"]["n"] == 4


# What leaves is JSON.


class Impossible(FakeEngines):
    """Log-probabilities of minus infinity."""

    async def generate(self, prompt: Any, sampling: Any, listen: Any = None) -> Completion:
        logprobs = (TokenLogprob("x", -float("inf"), (("y", -float("inf")),)),)
        if listen:
            listen(Delta("x", ()))
            listen(Delta("x", logprobs))
        return Completion("xx", 2, "stop", logprobs)


@pytest.fixture
def impossible(engines: FakeEngines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "generate", Impossible().generate)


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 1}),
        (CHAT, {"logprobs": True, "best_of": 2}),
        (TEXT, {"logprobs": 1}),
        (BEST, {"logprobs": 1, "n": 2}),
    ],
)
@pytest.mark.usefixtures("impossible")
async def test_a_number_that_json_has_not_is_an_error_and_no_broken_json(
    client: httpx.AsyncClient, endpoint: str, fields: dict[str, Any]
) -> None:
    asked = ({"prompt": "x"} if endpoint == TEXT else {"messages": U}) | fields
    whole = await client.post(endpoint, json=asked)
    assert (whole.status_code, strict(whole.text)["error"]["code"]) == (500, "internal_error")
    stream = await client.post(endpoint, json=asked | {"stream": True})
    name, last = list(events(stream.text))[-1]
    assert (stream.status_code, name, last["error"]["code"]) == (200, "error", "internal_error")
    assert "[DONE]" not in stream.text


@pytest.mark.parametrize("text", ["one\u2028two\u2029three\x85four", "👩‍👩‍👧 é 漢字 🎉", "\x00\x1c\x0b"])
async def test_a_stream_can_be_read_line_by_line(client: httpx.AsyncClient, engines: FakeEngines, text: str) -> None:
    async def generate(prompt: Any, sampling: Any, listen: Any = None) -> Completion:
        if listen:
            listen(Delta(text))
        return Completion(text, 3, "stop")

    engines.generate = generate  # type: ignore[method-assign]
    for endpoint, fields in ((CHAT, {}), (CHAT, {"best_of": 2}), (BEST, {"n": 2})):
        answer = await client.post(endpoint, json={"messages": U, "stream": True, **fields})
        *_, (_, last) = told = list(events(answer.text))
        if endpoint == BEST:
            assert last["selected"][0]["text"] == text
        else:
            assert "".join(chunk["choices"][0]["delta"].get("content") or "" for _, chunk in told) == text


async def test_data_of_an_event_is_the_json_of_its_fields() -> None:
    fields = {"text": "".join(map(chr, range(1, 0x3000)))}
    assert json.loads(json_event(fields).data or "") == fields


# Real clients over the application.


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines(context=2000)


async def test_openai_retrieves_and_sends_its_own_answers_back(client: httpx.AsyncClient) -> None:
    sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client)
    assert (await sdk.models.retrieve("fake:best-of-4")).id == "fake:best-of-4"
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        await sdk.models.retrieve("gpt-4")
    messages: list[Any] = list(U)
    whole = await sdk.chat.completions.create(model="fake", messages=messages)
    parsed = await sdk.chat.completions.parse(model="fake", messages=messages)
    async with sdk.chat.completions.stream(model="fake", messages=messages) as stream:
        streamed = (await stream.get_final_completion()).choices[0].message
    answers = [whole.choices[0].message, whole.choices[0].message.model_dump(), parsed.choices[0].message, streamed]
    for answer in answers:
        again = await sdk.chat.completions.create(model="fake", messages=[*messages, answer, *U], store=False)
        assert again.choices[0].message.content


async def test_langchain_works_unchanged(client: httpx.AsyncClient) -> None:
    where: dict[str, Any] = {
        "base_url": "http://localhost/v1",
        "api_key": "none",
        "max_retries": 0,
        "http_async_client": client,
    }
    completion = OpenAI(model="fake", seed=4, **where)
    assert await completion.ainvoke("Hello") == "answer 4"
    assert "".join([part async for part in completion.astream("Hello")]) == "answer 4"
    with pytest.raises(openai.BadRequestError, match="a request has one prompt"):
        await completion.agenerate(["one", "two"])
    assert len((await OpenAI(model="fake", batch_size=1, **where).agenerate(["one", "two"])).generations) == 2
    chat = ChatOpenAI(model="fake:best-of-4", seed=4, store=False, **where)
    assert (await chat.ainvoke([HumanMessage("Hello", name="ann")])).text == "answer 7"
    assert (await chat.bind_tools([]).ainvoke([("developer", "Be brief."), ("user", "Hello")])).text == "answer 7"
    with pytest.raises(openai.BadRequestError, match="tools: got a list of 1"):
        await chat.bind_tools([TOOL]).ainvoke("Hello")
