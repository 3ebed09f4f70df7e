from typing import Any

import httpx
import pytest

from tests.bad_requests import ASKED, BAD, BEST, CHAT

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("endpoint", "body", "status", "param"), BAD)
async def test_a_bad_request_names_its_field(
    client: httpx.AsyncClient, endpoint: str, body: Any, status: int, param: str
) -> None:
    sent = {"content": body, "headers": {"content-type": "application/json"}} if isinstance(body, bytes) else {}
    answer = await client.post(endpoint, **(sent or {"json": body}))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert param in error["message"]
    assert len(error["message"]) < 500


async def test_an_unknown_field_is_told_its_nearest_neighbour(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"messages": ASKED, "best_off": 4})
    assert answer.json()["error"]["message"] == "best_off: got 4, accepted: no such key; did you mean best_of?"


async def test_a_long_prompt_says_how_long(client: httpx.AsyncClient) -> None:
    error = (await client.post(BEST, json={"prompt": "x" * 500})).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "at most 200" in error["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", BEST, 405)])
async def test_unknown_paths_and_methods_have_the_envelope_too(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]
