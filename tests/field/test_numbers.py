"""Numbers of thousands of digits, wherever text becomes a number: an error in one line, never an internal one."""

import json
from typing import Any

import httpx
import pytest

from infalign.errors import InvalidValue
from infalign.parsing import parse_procedure, parse_transformation
from tests.asgi import Exchange
from tests.bad_requests import BEST, CALIBRATIONS, CHAT, REWARDS, TEXT, WORST
from tests.commands import run_here
from tests.openapi import make_schema

pytestmark = pytest.mark.anyio
DIGITS = "9" * 5000
NUMBERS = {
    "as many digits as JSON has": "9" * 4300,
    "one more": "9" * 4301,
    "a big float": "1e999",
    "2 ** 66": str(2**66),
}
ANYTHING = {"metadata", "safety_identifier", "service_tier", "store"} | {
    "prompt_cache_key",
    "prompt_cache_retention",
}
"""Fields that are ignored, whatever they hold."""
BODIES = {
    CHAT: "ChatRequest",
    TEXT: "CompletionRequest",
    BEST: "DecodingRequest",
    WORST: "DecodingRequest",
    REWARDS: "RewardsRequest",
    CALIBRATIONS: "CalibrationRequest",
}


def short(answer: httpx.Response) -> bool:
    return answer.status_code < 500 and len(answer.text) < 4000


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("endpoint", BODIES)
async def test_every_field_takes_a_big_number_as_a_mistake(
    client: httpx.AsyncClient, endpoint: str, number: str
) -> None:
    fields = make_schema()["components"]["schemas"][BODIES[endpoint]]["properties"]
    for field in fields:
        body: dict[str, Any] = (
            {"prompt": "x"} if "prompt" in fields else {"messages": [{"role": "user", "content": "x"}]}
        )
        body |= {"responses": ["x"]} if "responses" in fields else {}
        body |= {"stream": True} if field == "stream_options" else {}
        body.pop(field, None)
        content = json.dumps(body)[:-1] + f', "{field}": {number}}}'
        answer = await client.post(endpoint, content=content, headers={"content-type": "application/json"})
        assert short(answer), field
        if field not in ANYTHING or number == NUMBERS["one more"]:
            assert answer.status_code == 400, field


@pytest.mark.parametrize(
    "model", [f"fake:best-of-{DIGITS}", f"auto:worst-of-{DIGITS}", f"fake:best-of-poisson({DIGITS})", DIGITS * 20]
)
async def test_a_big_number_in_a_models_name_is_no_model(client: httpx.AsyncClient, model: str) -> None:
    for endpoint, body in ((BEST, {"prompt": "x"}), (TEXT, {"prompt": "x"}), (CALIBRATIONS, {"prompt": "x"})):
        answer = await client.post(endpoint, json=body | {"model": model})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
        assert short(answer)


@pytest.mark.parametrize("token", [DIGITS, "٣", "1234567890", "-1", ""])
async def test_a_token_id_is_a_few_digits(client: httpx.AsyncClient, token: str) -> None:
    answer = await client.post(BEST, json={"prompt": "x", "logit_bias": {token: 1}})
    assert answer.status_code == 400


@pytest.mark.parametrize(("length", "status"), [(DIGITS, 413), ("0" * 5000 + "23", 200), ("9" * 30, 413)])
async def test_a_content_length_may_have_any_digits(app: Any, length: str, status: int) -> None:
    exchange = Exchange(BEST, [b'{"prompt": "x", "n": 2}'], {"content-length": length})
    await exchange.through(app)
    assert exchange.status == status


@pytest.mark.parametrize("text", [f"best-of-{DIGITS}", f"worst-of-{DIGITS}", f"best-of-poisson({DIGITS})", "best-of-٣"])
def test_a_procedure_has_at_most_six_digits(text: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_procedure(text)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("text", [f"exp({DIGITS})", "exp(1e999)", f"exp(1e{DIGITS})", "exp(٣)"])
def test_a_transformation_is_finite(text: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_transformation(text)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "arguments",
    [
        ("frontier", "-t", "identity", "-p", f"best-of-{DIGITS}", "--kl", "1"),
        ("frontier", "-t", f"exp({DIGITS})", "-p", "best-of-4", "--kl", "1"),
        ("frontier", "-t", "identity", "-p", "best-of-4", "--kl", DIGITS),
        ("serve", "--port", DIGITS),
        ("serve", "--max-n", DIGITS),
        ("key", "app", "--role", "generate", "--keys", "keys.json", "--concurrent", DIGITS),
        ("train", "demo", "--plan", "--set", f"seed={DIGITS}"),
        ("train", "demo", "--plan", "--set", "seed=["),
        ("train", "demo", "--plan", "--set", f"procedure=best-of-{DIGITS}"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_a_command_answers_in_one_line(arguments: tuple[str, ...]) -> None:
    done = run_here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("infalign: ")
