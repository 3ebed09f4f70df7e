"""The OpenAPI schema is pinned: who changes what clients see, changes docs/openapi.json in the same commit.

python -m tests.unit.server.test_openapi writes it anew.
"""

import json
from pathlib import Path
from typing import Any

from server.app import create_app
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served

PINNED = Path(__file__).parents[3] / "docs" / "openapi.json"


def schema() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings(), FakeEngines(), fake_served()).openapi()
    return found


def test_the_schema_is_the_pinned_one() -> None:
    assert schema() == json.loads(PINNED.read_text(encoding="utf-8"))


def test_what_can_be_streamed_says_so() -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/best-of-n", "/v1/worst-of-n"):
        assert "text/event-stream" in schema()["paths"][path]["post"]["responses"]["200"]["content"], path


if __name__ == "__main__":
    PINNED.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
