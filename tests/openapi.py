"""The OpenAPI schema that is pinned in docs/openapi.json. ``python -m tests.openapi`` writes it anew."""

import json
from pathlib import Path
from typing import Any

from server.app import create_app
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served

PINNED = Path(__file__).parents[1] / "docs" / "openapi.json"


def make_schema() -> dict[str, Any]:
    """The schema of the server as it is."""
    schema: dict[str, Any] = create_app(Settings(), FakeEngines(), fake_served()).openapi()
    return schema


if __name__ == "__main__":
    PINNED.write_text(json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
