"""docs/project/promises.md: its limits are those of the code, and the tests that it names exist."""

import re
from pathlib import Path
from typing import Any

import pytest

from server.engines import grammar
from server.protocol import schemas
from server.protocol.requests import ChatRequest, SamplingFields
from server.routes.jobs import MAX_LOGPROBS
from server.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "project" / "promises.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \|([^|]*)\|$", PAGE.split("## Numbers")[0], re.MULTILINE)[1:]
LIMITS = {what: [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", limit)] for what, limit, _ in ROWS}


@pytest.mark.parametrize(("limit", "option"), [(limit, option) for _, limit, option in ROWS if "--" in option])
def test_a_limit_with_an_option_is_its_default(limit: str, option: str) -> None:
    name = re.findall(r"--([a-z-]+)", option)[0].replace("-", "_")
    assert float(re.findall(r"[\d.]+", limit)[0]) == Settings.model_fields[name].default


def longest(model: Any, *path: str) -> int:
    """The ``maxItems`` or ``maxProperties`` of a field."""
    schema = model.model_json_schema()
    value: Any = schema["properties"][path[0]]
    for name in path[1:]:
        value = schema["$defs"][value["items"]["$ref"].rpartition("/")[2]]["properties"][name]
    found = [part for part in (value, *value.get("anyOf", ())) if {"maxItems", "maxProperties"} & part.keys()]
    return int(found[0].get("maxItems", found[0].get("maxProperties")))


def test_the_other_limits_are_those_of_the_code() -> None:
    assert LIMITS["messages"] == [longest(ChatRequest, "messages")]
    assert LIMITS["parts of a message"] == [longest(ChatRequest, "messages", "content")]
    assert LIMITS["stop strings"][0] == longest(SamplingFields, "stop")
    assert LIMITS["entries of `logit_bias`"] == [longest(SamplingFields, "logit_bias")]
    assert LIMITS["log-probabilities: candidates × `max_tokens` × (1 + alternatives)"] == [MAX_LOGPROBS]
    assert LIMITS["a JSON schema"] == [schemas.CHARACTERS, schemas.DEPTH, schemas.VALUES]
    assert LIMITS["tools, and calls of a turn"] == [longest(ChatRequest, "tools")]
    assert LIMITS["tools, and calls of a turn"] == [longest(ChatRequest, "messages", "tool_calls")]
    assert LIMITS["parameters of a tool, arguments of a call, `chat_template_kwargs`"] == [
        schemas.CHARACTERS,
        schemas.DEPTH,
    ]
    assert LIMITS["a count in a pattern of a schema"] == [schemas.REPEATS]
    assert LIMITS["compiling a schema"] == [grammar.COMPILE_SECONDS]


def test_the_tests_that_it_names_exist() -> None:
    table = PAGE.split("## How it is tested")[1]
    for row in re.findall(r"^\|.*\|$", table, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)`", row):
            folder = name.rpartition("/")[0] or folder
            assert (ROOT / folder / name.rpartition("/")[2]).is_file(), name
