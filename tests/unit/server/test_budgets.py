"""Budgets of draws for many prompts, over a prefix scorer in memory."""

from typing import Any

import httpx
import pytest

from server.engines import EnginesDown
from tests.fakes import Predicting
from tests.unit.server.conftest import serve_scorer

pytestmark = pytest.mark.anyio
URL = "/v1/budgets"
CHAT = [{"role": "user", "content": "hello"}]
ANSWERED = {"role": "assistant", "content": "7"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture
def engines() -> Predicting:
    return Predicting()


async def split(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    split: dict[str, Any] = answer.json()
    return split


async def refuse(client: httpx.AsyncClient, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = await client.post(URL, json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_prompts_whose_rewards_are_spread_get_more_draws(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        answer = await split(client, prompts=["a 1", "b 9", "c 5"], total=24)
        text = (await client.get("/metrics")).text
    assert sorted(engines.prefixes) == ["a 1", "b 9", "c 5"], "each prompt is read once"
    assert engines.drawn == []
    low, high, middle = answer["prompts"]
    assert low["n"] < middle["n"] < high["n"]
    assert answer["total"] == low["n"] + middle["n"] + high["n"] == 24
    assert answer["expected_reward"] > answer["even_reward"]
    assert low["expected_reward"] < middle["expected_reward"] < high["expected_reward"] < 9.5
    # One response has the mean of its law, whose bins are as wide as the digits.
    assert high["expected_reward"] - high["gain"] == pytest.approx(4.5, abs=0.01)
    assert (answer["model"], answer["conversations"]) == ("fake", [])
    assert "infalign_budget_prompts_total 3.0" in text


async def test_conversations_are_read_as_they_would_be_decoded(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        continued = [*CHAT, ANSWERED]
        options = {"continue_final_message": True, "add_generation_prompt": False}
        answer = await split(client, conversations=[continued], prompts=["2"], total=2, **options)
        await client.post("/v1/best-of-n", json={"messages": continued, "n": 1, "calibrate": "predict", **options})
    assert [one["n"] for one in answer["prompts"] + answer["conversations"]] == [1, 1]
    assert engines.prefixes[:2] == ["2", engines.prefixes[2]]


async def test_every_prompt_has_least_and_none_more_than_most(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        answer = await split(client, prompts=["1", "9"], total=12, least=3, most=8)
        assert [one["n"] for one in answer["prompts"]] == [4, 8]
        capped = await split(client, prompts=["1", "9"], total=100)
    assert [one["n"] for one in capped["prompts"]] == [16, 16], "the server's limit of N"
    assert capped["total"] == 32
    assert capped["expected_reward"] == pytest.approx(capped["even_reward"])


async def test_several_rewards_are_split_by_what_they_combine_to(engines: Predicting) -> None:
    async with serve_scorer(engines, weights={"helpful": 1.0, "terse": 1.0}) as client:
        assert (await split(client, prompts=["1", "9"], total=12))["total"] == 12


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"prompts": ["a", "b"], "total": 1}, "total", "accepted: at least 2, as 2 prompts get at least 1 draws each"),
        ({"prompts": ["a", "b"], "total": 5, "least": 3}, "total", "accepted: at least 6"),
        ({"prompts": ["a"], "total": 8, "most": 17}, "most", "most: got 17, accepted: at most 16"),
        ({"prompts": ["a"], "total": 8, "least": 4, "most": 3}, "least", "accepted: at most 3, the most draws"),
        ({"total": 8}, "conversations", "1 to 1024 prompts and conversations together, not 0"),
        ({"prompts": ["a"] * 1000, "conversations": [CHAT] * 25, "total": 9}, "conversations", "together, not 1025"),
        ({"prompts": ["a"]}, "total", "required"),
        ({"prompts": [""], "total": 8}, "prompts.0", ""),
        ({"prompts": ["a"], "total": 0}, "total", ""),
        ({"prompts": ["a"], "total": 8, "n": 3}, "n", "no such key"),
        ({"conversations": [[]], "total": 8}, "conversations.0", ""),
        ({"conversations": [[*CHAT, ANSWERED]], "total": 8}, "conversations", "last turn"),
        ({"prompts": ["a" * 300], "total": 8}, "prompts.0", "accepted: at most 200"),
        ({"conversations": [[{"role": "user", "content": "a" * 300}]], "total": 8}, "conversations.0", "at most 200"),
        (
            {"conversations": [CHAT], "tools": [TOOL], "total": 8},
            "tools",
            "",
        ),
    ],
)
async def test_what_does_not_fit_is_refused(
    engines: Predicting, body: dict[str, Any], field: str, message: str
) -> None:
    async with serve_scorer(engines) as client:
        error = await refuse(client, **body)
    assert error["param"] == field
    assert message in error["message"]
    assert engines.prefixes == []


async def test_without_a_scorer_it_is_refused(engines: Predicting) -> None:
    async with serve_scorer(engines, scorer=None) as client:
        error = await refuse(client, prompts=["a"], total=8)
    assert error["message"].startswith(
        "budgets: cannot be split, as this server has no prefix scorer; its operator can"
    )


async def test_an_unknown_model_is_not_found(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        assert (await refuse(client, 404, prompts=["a"], total=8, model="gpt"))["param"] == "model"


async def test_a_scorer_that_is_down_fails_the_request(engines: Predicting) -> None:
    engines.prefix_fault = EnginesDown("did not start")
    async with serve_scorer(engines) as client:
        await refuse(client, 503, prompts=["a", "b"], total=8)
