"""What the prefix scorer predicts for prompts that nobody has calibrated, over engines in memory."""

from typing import Any

import httpx
import numpy as np
import pytest

from server.engines import EnginesDown, RequestFailed
from tests.fakes import KNOWN, Predicting
from tests.unit.server.conftest import serve_scorer

pytestmark = pytest.mark.anyio
ASK = {"prompt": "prompt of 3", "n": 4, "seed": 2, "calibrate": "predict"}
BEST = "/v1/best-of-n"


@pytest.fixture
def engines() -> Predicting:
    return Predicting()


async def test_quantiles_of_an_unknown_prompt_are_predicted_without_a_draw(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        pooled = (await client.post(BEST, json=ASK | {"calibrate": False})).json()
        assert engines.prefixes == []
        predicted = (await client.post(BEST, json=ASK | {"return_candidates": True})).json()
        text = (await client.get("/metrics")).text
    assert engines.prefixes == ["prompt of 3"], "the prompt is read once, before the first token"
    assert engines.reference_draws == []
    assert (pooled["calibration"]["scope"], predicted["calibration"]["scope"]) == ("global", "predicted")
    assert predicted["calibration"]["samples"] >= 1
    rewards = [candidate["reward"] for candidate in predicted["candidates"]]
    assert rewards == [2, 3, 4, 5]
    quantiles = np.array([candidate["quantile"] for candidate in predicted["candidates"]])
    assert np.all(np.diff(quantiles) >= 0)
    assert quantiles[0] == pytest.approx((2 + 0.5) / 4, abs=0.1)
    assert quantiles[-1] > 0.9 > pooled["selected"][0]["quantile"]
    for candidate in predicted["candidates"]:
        assert candidate["quantile_low"] < candidate["quantile"] < candidate["quantile_high"]
    assert 'infalign_calibration_lookups_total{scope="predicted",source="predicted"} 1.0' in text
    assert 'infalign_selected_quantile_count{procedure="best-of-n",scope="predicted"} 1.0' in text


async def test_a_calibrated_prompt_keeps_its_own(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        known = {"messages": [{"role": "user", "content": KNOWN}], "n": 2, "calibrate": "predict"}
        assert (await client.post(BEST, json=known)).json()["calibration"] == {"scope": "prompt", "samples": 10}
        await client.post("/v1/calibrations", json={"prompt": ASK["prompt"]})
        assert (await client.post(BEST, json=ASK)).json()["calibration"] == {"scope": "prompt", "samples": 10}
    assert engines.prefixes == []


async def test_every_endpoint_can_ask_for_it(engines: Predicting) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("best-of-n", {"prompt": "a5"}),
        ("worst-of-n", {"prompt": "b5"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "c"}], "chat_template_kwargs": {"x": 1}}),
        ("completions", {"prompt": "d5"}),
        ("rewards", {"prompt": "e5", "responses": ["7", "2"]}),
    ]
    async with serve_scorer(engines) as client:
        for endpoint, body in cases[:2] + cases[3:]:
            answer = (await client.post(f"/v1/{endpoint}", json=body | {"calibrate": "predict"})).json()
            assert answer["calibration"]["scope"] == "predicted", endpoint
    assert [one["quantile"] > 0.9 for one in answer["rewards"]] == [True, False]


async def test_a_rule_stops_on_predicted_quantiles_and_says_so(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        body = ASK | {"n": 16, "target_quantile": 0.8}
        stopping = (await client.post(BEST, json=body)).json()["stopping"]
    assert (stopping["reason"], stopping["basis"]) == ("target", "predicted")
    assert 0 < stopping["miss_probability"] < 0.5
    assert stopping["drawn"] < 16


async def test_a_stream_has_predicted_quantiles(engines: Predicting) -> None:
    async with serve_scorer(engines) as client:
        text = (await client.post(BEST, json=ASK | {"stream": True})).text
    assert '"scope":"predicted"' in text.replace(" ", "")


@pytest.mark.parametrize(
    ("fault", "status"), [(EnginesDown("did not start"), 503), (RequestFailed("the prefix scorer refused"), 502)]
)
async def test_a_scorer_that_fails_fails_the_request_before_a_draw(
    engines: Predicting, fault: Exception, status: int
) -> None:
    engines.prefix_fault = fault
    async with serve_scorer(engines) as client:
        answer = await client.post(BEST, json=ASK)
        assert (answer.status_code, engines.drawn) == (status, [])
        assert (await client.post(BEST, json=ASK | {"calibrate": False})).status_code == 200


@pytest.mark.parametrize("path", ["best-of-n", "completions", "rewards"])
async def test_without_a_scorer_it_is_refused(engines: Predicting, path: str) -> None:
    body = {"prompt": "a", "calibrate": "predict"} | ({"responses": ["7"]} if path == "rewards" else {})
    async with serve_scorer(engines, scorer=None) as client:
        error = (await refused(client, path, body))["error"]
    assert error["param"] == "calibrate"
    assert error["message"].startswith(
        "calibrate: got 'predict', accepted: true or false, as this server has no prefix scorer; "
    )


async def test_several_rewards_are_refused(engines: Predicting) -> None:
    async with serve_scorer(engines, weights={"helpful": 1.0, "terse": 1.0}) as client:
        error = (await refused(client, "best-of-n", {"prompt": "a", "calibrate": "predict"}))["error"]
    assert "as this bundle has 2 rewards" in error["message"]


@pytest.mark.parametrize("value", ["yes", 1, []])
async def test_other_values_are_refused(engines: Predicting, value: object) -> None:
    async with serve_scorer(engines) as client:
        error = (await refused(client, "best-of-n", {"prompt": "a", "calibrate": value}))["error"]
    assert error["param"] == "calibrate"
    assert error["message"].endswith("accepted: true, false or predict")


async def refused(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()
    return error
