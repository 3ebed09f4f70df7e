"""The OpenAPI schema is pinned: who changes what clients see, changes docs/openapi.json in the same commit."""

import json

from tests.openapi import PINNED, make_schema


def test_the_schema_is_the_pinned_one() -> None:
    assert make_schema() == json.loads(PINNED.read_text(encoding="utf-8")), "python -m tests.openapi writes it anew"


def test_what_can_be_streamed_says_so() -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/best-of-n", "/v1/worst-of-n"):
        answer = make_schema()["paths"][path]["post"]["responses"]["200"]
        assert "text/event-stream" in answer["content"], path
