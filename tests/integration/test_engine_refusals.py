"""Requests that real engines refuse or fail at, while they live."""

import json
import math
from typing import Any

import httpx
import pytest

from tests.faults import ASKED, NORMAL

UNHOLDABLE = {
    "a repeat above 128": {"type": "string", "pattern": "^.{1,280}$"},
    "a property that is one": {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,252}$"}},
        "required": ["a"],
    },
}


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize("schema", UNHOLDABLE)
@pytest.mark.parametrize("endpoint", ["best-of-n", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_the_engine_cannot_hold_is_refused(
    client: httpx.Client, schema: str, endpoint: str, stream: bool
) -> None:
    body = {"messages": ASKED, "n": 2, "stream": stream, "response_format": response_format(UNHOLDABLE[schema])}
    answer = client.post(f"/v1/{endpoint}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "response_format.json_schema.schema"
    assert client.get("/ready").status_code == 200
    assert client.post("/v1/best-of-n", json=NORMAL).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"response_format": response_format({"type": "object", "properties": {"a": 5}})}, "response_format"),
        ({"response_format": response_format({"$ref": "#/nowhere"})}, "response_format"),
        ({"response_format": response_format({"type": "string", "pattern": "("})}, "response_format"),
    ],
)
def test_what_the_engine_refuses_is_named(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/best-of-n", json={"messages": ASKED, "n": 2, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_tokens_that_cannot_be_drawn_are_finite(client: httpx.Client, stream: bool) -> None:
    body = {
        "messages": ASKED,
        "stream": stream,
        "logprobs": True,
        "top_logprobs": 3,
        "max_tokens": 6,
        "response_format": {"type": "json_object"},
    }
    answer = client.post("/v1/chat/completions", json=body)
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    parsed = [json.loads(event, parse_constant=lambda name: pytest.fail(name)) for event in events]
    choices = [choice for event in parsed for choice in event["choices"] if choice.get("logprobs")]
    found = [
        entry["logprob"]
        for choice in choices
        for token in choice["logprobs"]["content"]
        for entry in (token, *token["top_logprobs"])
    ]
    assert all(isinstance(value, float) and math.isfinite(value) for value in found)
    assert -9999.0 in found
