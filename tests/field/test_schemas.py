"""JSON schemas that clients send: what is refused before anything is drawn, and by which name."""

import json
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.engines import EnginesDown, Refused, Structure
from server.engines.grammar import GrammarCheck
from server.protocol.schemas import check_schema
from tests.fakes import FakeEngines
from training.tokenizer import train_tokenizer

ASKED = [{"role": "user", "content": "hello"}]
FIELD = "response_format.json_schema.schema"


def nested(depth: int, kind: str = "object") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        below = {"properties": {"a": schema}} if kind == "object" else {"items": schema}
        schema = {"type": kind, **below}
    return schema


def body(schema: Any, **fields: Any) -> dict[str, Any]:
    named = {"name": "a", "schema": schema}
    return {"messages": ASKED, "response_format": {"type": "json_schema", "json_schema": named}, **fields}


ACCEPTED = [
    pytest.param({}, id="empty"),
    pytest.param(nested(31), id="31 objects inside each other"),
    pytest.param({"enum": list(range(1000))}, id="1,000 values"),
    pytest.param({"type": "string", "pattern": "^[a-z]{1,128}$"}, id="128 repeats"),
    pytest.param({"type": "string", "pattern": r"^\{200\}[{300}]\\{5}$"}, id="numbers that are no repeats"),
    pytest.param({"properties": {"enum": {"type": "string"}, "pattern": {"type": "string"}}}, id="names of keywords"),
]
REFUSED = [
    pytest.param(nested(100), "nested at most 64 deep", id="100 objects inside each other"),
    pytest.param(nested(400, "array"), "nested at most 64 deep", id="400 arrays inside each other"),
    pytest.param(nested(450), "nested at most 64 deep", id="450 objects inside each other"),
    pytest.param({"enum": list(range(5000))}, "at most 1000 values in all enums", id="5,000 values"),
    pytest.param(
        {"anyOf": [{"enum": list(range(600))}, {"enum": list(range(600))}]}, "not 1200", id="600 values twice"
    ),
    pytest.param({"description": "x" * 70_000}, "at most 65536 characters", id="70,000 characters"),
    pytest.param({"type": "string", "pattern": "^.{1,280}$"}, "at most 128 times, not 280", id="280 repeats"),
    pytest.param({"items": [{"pattern": "[a-z]{200,}"}]}, "at most 128 times", id="200 repeats and more"),
    pytest.param({"pattern": "^[a-z][a-z0-9-]{0,252}$"}, "at most 128 times", id="repeats behind a class"),
    pytest.param({"pattern": "[" * 60_000 + "]{129}"}, "at most 128 times", id="60,000 brackets"),
    pytest.param({"pattern": "a{" + "9" * 5000 + "}"}, "at most 128 times", id="a number of 5,000 digits"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("schema", ACCEPTED)
async def test_an_ordinary_schema_is_accepted(client: httpx.AsyncClient, schema: Any) -> None:
    answer = await client.post("/v1/chat/completions", json=body(schema))
    assert answer.status_code == 200, answer.text


@pytest.mark.anyio
@pytest.mark.parametrize("schema", [{"enum": ["\ud800"]}, {"minimum": math.nan}])
async def test_a_schema_that_is_no_json_is_refused(client: httpx.AsyncClient, schema: Any) -> None:
    content, headers = json.dumps(body(schema)), {"content-type": "application/json"}
    answer = await client.post("/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, FIELD)
    assert "a schema of whole characters and finite numbers" in answer.text


@pytest.mark.anyio
@pytest.mark.parametrize(("schema", "reason"), REFUSED)
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 4}])
async def test_a_schema_beyond_the_limits_is_refused(
    client: httpx.AsyncClient, engines: FakeEngines, schema: Any, reason: str, fields: dict[str, Any]
) -> None:
    for endpoint in ("/v1/chat/completions", "/v1/best-of-n"):
        answer = await client.post(endpoint, json=body(schema, **fields))
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, FIELD)
        assert reason in error["message"]
        assert len(error["message"]) < 500
    assert not engines.drawn


KEYS = st.sampled_from(["enum", "pattern", "items", "type"]) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=4),
)


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_a_small_schema_without_repeats_is_accepted_whatever_it_holds(schema: dict[str, Any]) -> None:
    assume(not re.search(r"\{\d{3}", json.dumps(schema)))
    assert check_schema(schema) is schema


@pytest.mark.anyio
@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_what_the_engine_cannot_hold_a_response_to_is_a_bad_request_before_anything_is_drawn(
    client: httpx.AsyncClient, engines: FakeEngines, fields: dict[str, Any]
) -> None:
    asked: list[Structure] = []

    async def refuse(structure: Structure) -> None:
        asked.append(structure)
        raise Refused("a schema that can be made a grammar")

    engines.check_structure = refuse  # type: ignore[method-assign]
    answer = await client.post("/v1/best-of-n", json=body({"type": "string"}, n=8, **fields))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "response_format")
    assert "a schema that can be made a grammar" in error["message"]
    assert not engines.drawn
    assert len(asked) == 1  # once for the request, not for each candidate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the grammar compiler reads of a model."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["hello"], 300)
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(tokenizer)}))
    return directory


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def grammar(model: Path) -> AsyncIterator[GrammarCheck]:
    check = GrammarCheck(model)
    yield check
    check.close()


SLOW = {"type": "string", "pattern": "^((((a{1,128}){1,128}){1,128}){1,128}){1,128}$"}


@pytest.mark.anyio
async def test_the_compiler_itself_says_what_it_cannot_do(grammar: GrammarCheck) -> None:
    await grammar.check({"type": "object", "properties": {"a": {"type": "string"}}})
    for schema, reason in (
        ({"type": "nonsense"}, 'Unsupported type "nonsense"'),
        ({"$ref": "#/$defs/none"}, "Cannot find field"),
        ({"type": "string", "pattern": "(["}, "Regex parsing error"),
        ({"type": "string", "pattern": "^.{1,280}$"}, "no reason given"),
    ):
        with pytest.raises(Refused, match="a schema that can be made a grammar") as refusal:
            await grammar.check(schema)
        assert reason in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.anyio
async def test_a_slow_schema_is_given_up_and_the_next_one_is_not_held_up(model: Path) -> None:
    impatient = GrammarCheck(model, seconds=0.0)
    with pytest.raises(Refused, match="within 0 s"):
        await impatient.check(SLOW)
    impatient._seconds = 60
    await impatient.check({"type": "string"})
    impatient.close()


@pytest.mark.anyio
async def test_a_process_that_does_not_start_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(EnginesDown, match="did not start"):
        await GrammarCheck(tmp_path / "no model").check({"type": "string"})
