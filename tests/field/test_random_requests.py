"""Requests at random, of the shapes that clients send and of their broken forms: what holds for every one of them."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from server.app import create_app
from server.engines import Completion, Delta, Sampling
from server.settings import Settings
from tests.bad_requests import BEST, CALIBRATIONS, CHAT, REWARDS, TEXT, WORST
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.streams import events, strict

EXAMPLES = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
SECRET = "a xylophone"
NASTY = ("", "plain", "\u2028", "\u2029\x85", "\x00\x0b\x1c", "👩‍👩‍👧", "é 漢字", "data: [DONE]\n\n", '"}', "\r\n")


class NastyEngines(FakeEngines):
    """Answers that are hard to write down; the last digit is that of the seed."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        plain = await super().generate(prompt, sampling)
        begin, end = NASTY[sampling.seed % len(NASTY)], f" {sampling.seed}"
        if listen:
            listen(Delta(begin, (plain.logprobs or ())[:1]))
            listen(Delta(end, (plain.logprobs or ())[1:]))
        return Completion(begin + end, plain.tokens, "stop", plain.logprobs)


@dataclass
class Server:
    """The application, asked for one thing at a time."""

    runner: asyncio.Runner
    client: httpx.AsyncClient
    lines: list[logging.LogRecord] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """The answer, of which all is true that is true of every answer."""
        self.lines.clear()
        sent = {} if body is None else {"content": json.dumps(body), "headers": {"content-type": "application/json"}}
        answer = self.runner.run(self.client.request(method, path, **sent))
        event(str(answer.status_code))
        assert answer.status_code < 500, answer.text
        assert len(self.lines) == 1
        if answer.status_code >= 400 and method != "HEAD":
            error = strict(answer.text)["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["code"]
            assert (error["param"] or "") in error["message"]
            assert SECRET not in error["message"]
            assert len(error["message"]) < 1500
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    access = logging.getLogger("infalign.access")
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("INFALIGN_HOME", str(tmp_path_factory.mktemp("home")))
        engines = NastyEngines()
        app = create_app(Settings(max_n=8, deadline=20, tool_parser="hermes"), engines, fake_served())
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        runner.run(engines.started.wait())
        found = Server(runner, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost"))
        patch.setattr(access, "level", logging.DEBUG)
        patch.setattr(access, "filters", [lambda record: found.lines.append(record) or True])
        logging.disable(logging.NOTSET)
        yield found
        runner.run(found.client.aclose())
        runner.run(lifespan.__aexit__(None, None, None))
        assert not engines.running


# Values: mostly right, at times anything.

good_texts = st.one_of(
    st.sampled_from([SECRET, KNOWN, "x", " ", "."]),
    st.sampled_from(NASTY).map(SECRET.__add__),
    st.text(max_size=8).map(SECRET.__add__),  # no surrogates
)
bad_texts = st.one_of(
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2).map(SECRET.__add__),
    st.sampled_from(["", SECRET * 60]),
)
texts = st.integers(0, 14).flatmap(lambda one: good_texts if one else bad_texts)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)
whole = st.one_of(
    st.integers(-1, 10),
    st.integers(1, 8).map(float),
    st.sampled_from([0.5, 1e999, float("nan"), 2**31, 2**62, 2**63, 10**400, "3", True]),
)
real = st.one_of(
    st.floats(0, 2), st.integers(-2, 3), st.sampled_from([1e308, -1e999, float("nan"), 5e-324, -0.0, "0.7"])
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is usual, four times of five."""
    return st.integers(0, 4).flatmap(lambda one: usual if one else anything)


def fields(
    required: Mapping[str, st.SearchStrategy[Any]], optional: Mapping[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    """An object with these fields and, now and then, an unknown one."""
    known = st.fixed_dictionaries(dict(required), optional={name: mostly(one) for name, one in optional.items()})
    unknown = st.dictionaries(st.sampled_from(["stream_", "list[int]", "body", "x" * 200]), anything, max_size=1)
    return st.integers(0, 9).flatmap(lambda one: known if one else st.builds(dict.__or__, known, unknown))


part = fields(
    {"type": st.sampled_from(["text", "text", "text", "image_url", "input_text"]), "text": texts},
    {"cache_control": st.just({"type": "ephemeral"})},
)
call = fields({"type": st.just("function"), "function": fields({"name": texts}, {"arguments": texts})}, {"id": texts})
message = fields(
    {
        "role": st.sampled_from(["user", "user", "system", "developer", "assistant", "tool"]),
        "content": texts | mostly(st.lists(part | texts, max_size=2)),
    },
    {
        "name": texts,
        "type": st.just("text"),
        "annotations": st.just([]),
        "tool_calls": st.sampled_from([[], [{"id": "1"}]]) | st.lists(call, max_size=2),
        "tool_call_id": texts,
        "refusal": st.just(""),
        "reasoning_content": texts,
    },
)
plain_turn = st.builds(lambda text: {"role": "user", "content": text}, texts)
one_turn = plain_turn.map(lambda turn: [turn])
conversation = st.one_of(
    *[one_turn] * 3,
    st.lists(message, max_size=3),
    st.tuples(st.lists(message, max_size=2), plain_turn).map(lambda both: [*both[0], both[1]]),
)
prompt = st.one_of(*[texts] * 3, st.lists(texts | st.integers(0, 9), max_size=2))
names = st.one_of(
    st.sampled_from(["fake", "auto", "fake:best-of-4", "auto:worst-of-2", "fake:standard", "FAKE", "fake:", ":", ""]),
    st.builds(
        "{}:{}-of-{}".format, st.sampled_from(["fake", "auto", "gpt"]), st.sampled_from(["best", "worst", "?"]), whole
    ),
    st.text(max_size=12),
    st.just("fake:best-of-" + "9" * 5000),
    st.just("fake:best-of-poisson(3)"),
)
shallow_schema = st.one_of(
    st.sampled_from([{}, {"type": "string"}, {"enum": [1, None]}, {"$ref": SECRET}, {"const": SECRET}, {"anyOf": []}]),
    st.dictionaries(st.sampled_from(["type", "properties", "pattern"]), anything, max_size=2),
)
form = fields(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    {"json_schema": fields({"name": texts, "schema": shallow_schema}, {"strict": st.booleans()})},
)
SAMPLING = {
    "model": names,
    "temperature": real,
    "top_p": real,
    "top_k": whole,
    "min_p": real,
    "max_tokens": whole,
    "min_tokens": whole,
    "stop": texts | st.lists(texts, max_size=18),
    "seed": whole,
    "presence_penalty": real,
    "repetition_penalty": real,
    "logit_bias": st.dictionaries(st.sampled_from(["5", "-1", " 5", "a", "[key]"]), real, max_size=2),
    "response_format": form,
    "timeout": st.sampled_from([5, 19.5, 1000, 0.0, float("inf")]),
    "min_candidates": whole,
    "calibrate": st.booleans(),
    "user": texts,
    "n": whole,
}
OPENAI = SAMPLING | {
    "best_of": whole,
    "worst_of": whole,
    "stream_options": st.sampled_from([{}, {"include_usage": True}, {"include_obfuscation": True}]),
    "store": st.booleans(),
    "metadata": anything,
}
TEMPLATE = {
    "tools": st.sampled_from([[], [{"type": "function"}], [{"type": "function", "function": {"name": "f"}}]]),
    "tool_choice": st.sampled_from(["none", "auto", "required"]),
    "parallel_tool_calls": st.booleans(),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["thinking", "messages", "forbidden", "a b"]), anything, max_size=2
    ),
    "add_generation_prompt": st.booleans(),
    "continue_final_message": st.booleans(),
}
CHATTING = (
    OPENAI
    | TEMPLATE
    | {
        "max_completion_tokens": whole,
        "logprobs": st.booleans(),
        "top_logprobs": whole,
        "modalities": st.sampled_from([["text"], ["audio"]]),
    }
)


def few(strategies: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields, so that not every request has one that is wrong."""
    names = st.lists(st.sampled_from(sorted(strategies)), max_size=3, unique=True)
    return names.flatmap(lambda chosen: fields({}, {name: strategies[name] for name in chosen}))


def body(
    asked: Mapping[str, st.SearchStrategy[Any]], optional: Mapping[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    """A body with what is asked and a few of the optional fields."""
    return st.builds(dict.__or__, st.fixed_dictionaries(dict(asked)), few(optional))


either = {"messages": conversation} | {"prompt": prompt}
alone = [st.fixed_dictionaries({name: strategy}) for name, strategy in either.items()]
asked = st.one_of(*alone * 4, st.fixed_dictionaries(either))


def texts_of(answer: httpx.Response) -> Iterator[Any]:
    """Every JSON value of an answer, of a stream too."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        yield from (value for _, value in events(answer.text))
    else:
        yield strict(answer.text)


@given(
    fields=st.builds(dict.__or__, asked, few(SAMPLING | TEMPLATE | {"top": whole, "logprobs": whole})),
    stream=st.booleans(),
)
@pytest.mark.parametrize(("endpoint", "extreme"), [(BEST, max), (WORST, min)])
@EXAMPLES
def test_decoding_selects_the_extreme(
    server: Server, endpoint: str, extreme: Callable[..., float], fields: dict[str, Any], stream: bool
) -> None:
    answer = server.ask("POST", endpoint, fields | {"return_candidates": True, "stream": stream})
    if answer.status_code == 200:
        *_, last = texts_of(answer)
        rewards = [candidate["reward"] for candidate in last["candidates"]]
        selected = [candidate["reward"] for candidate in last["selected"]]
        assert len(selected) == int(fields.get("top") or 1)
        assert selected == sorted(rewards, reverse=extreme is max)[: len(selected)]
        assert selected[0] == extreme(rewards)
        assert last["procedure"].endswith(f"-of-{len(rewards)}")
        assert last["theory"]["n"] in (1, len(rewards))


@given(fields=body({"messages": conversation}, CHATTING), stream=st.booleans())
@EXAMPLES
def test_chat_has_n_choices(server: Server, fields: dict[str, Any], stream: bool) -> None:
    _has_n_choices(server.ask("POST", CHAT, fields | {"stream": stream}), fields)


@given(fields=body({"prompt": prompt}, OPENAI | {"logprobs": whole, "echo": st.booleans()}), stream=st.booleans())
@EXAMPLES
def test_completions_have_n_choices(server: Server, fields: dict[str, Any], stream: bool) -> None:
    _has_n_choices(server.ask("POST", TEXT, fields | {"stream": stream}), fields)


def _has_n_choices(answer: httpx.Response, asked: dict[str, Any]) -> None:
    if answer.status_code == 200:
        choices = [choice for part in texts_of(answer) for choice in part["choices"] if choice["finish_reason"]]
        assert sorted(choice["index"] for choice in choices) == list(range(int(asked.get("n") or 1)))
        rewards = [choice["reward"] for choice in choices]
        if asked.get("best_of"):
            assert rewards == sorted(rewards, reverse=True)
        if asked.get("worst_of"):
            assert rewards == sorted(rewards)


@given(
    fields=st.builds(dict.__or__, asked, few(TEMPLATE | {"model": names, "calibrate": st.booleans()})),
    responses=st.lists(texts, min_size=1, max_size=3) | st.lists(texts, max_size=9),
)
@EXAMPLES
def test_rewards_are_one_for_each_response(server: Server, fields: dict[str, Any], responses: list[str]) -> None:
    answer = server.ask("POST", REWARDS, fields | {"responses": responses})
    if answer.status_code == 200:
        scored = strict(answer.text)["rewards"]
        assert [one["index"] for one in scored] == list(range(len(responses)))
        assert all(one["quantile_low"] <= one["quantile"] <= one["quantile_high"] for one in scored)


@given(fields=st.builds(dict.__or__, asked, few(TEMPLATE | {"model": names})))
@EXAMPLES
def test_calibrations_are_of_all_samples(server: Server, fields: dict[str, Any]) -> None:
    answer = server.ask("POST", CALIBRATIONS, fields)
    if answer.status_code == 200:
        assert strict(answer.text)["samples"] == 10


@given(endpoint=st.sampled_from([CHAT, TEXT, BEST, WORST, REWARDS, CALIBRATIONS]), value=anything)
@EXAMPLES
def test_a_body_of_anything_is_refused(server: Server, endpoint: str, value: Any) -> None:
    assert server.ask("POST", endpoint, [] if value is None else value).status_code == 400


@given(name=names)
@EXAMPLES
def test_a_model_is_there_or_not(server: Server, name: str) -> None:
    path = f"/v1/models/{quote(name, safe='', errors='replace')}"
    got = server.ask("GET", path)
    assert server.ask("HEAD", path).status_code == got.status_code
    assert got.status_code in (200, 307, 404)
