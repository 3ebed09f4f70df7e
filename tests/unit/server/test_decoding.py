"""Decoding over engines in memory: selection, seeds, usage, calibration, faults."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.settings import Settings
from tests.asgi import Exchange
from tests.fakes import KNOWN, CharacterTokenizer, FakeEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]


async def test_best_and_worst_of_n_select_the_extremes(client: httpx.AsyncClient) -> None:
    body = {"messages": ASKED, "n": 10, "seed": 20, "top": 3, "return_candidates": True}
    best = (await client.post("/v1/best-of-n", json=body)).json()
    worst = (await client.post("/v1/worst-of-n", json=body)).json()
    assert [candidate["reward"] for candidate in best["selected"]] == [9, 8, 7]
    assert [candidate["reward"] for candidate in worst["selected"]] == [0, 1, 2]
    assert [candidate["index"] for candidate in best["candidates"]] == list(range(10))
    assert [candidate["seed"] for candidate in best["candidates"]] == list(range(20, 30))
    assert best["procedure"] == "best-of-10"
    assert best["theory"]["expected_quantile"] == pytest.approx(10 / 11)
    assert worst["theory"]["expected_quantile"] == pytest.approx(1 / 11)
    assert best["usage"]["completion_tokens"] == 30
    assert best["usage"]["total_tokens"] == best["usage"]["prompt_tokens"] + 30


async def test_quantiles_say_where_they_come_from(client: httpx.AsyncClient) -> None:
    known = (await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 1, "seed": 5})).json()
    other = (await client.post("/v1/best-of-n", json={"prompt": "else", "n": 1, "seed": 5})).json()
    assert known["calibration"] == {"scope": "prompt", "samples": 10}
    assert other["calibration"]["scope"] == "global"
    selected = known["selected"][0]
    assert selected["quantile"] == pytest.approx((5.5 + 0.5) / 11)
    assert selected["quantile_low"] < selected["quantile"] < selected["quantile_high"]


async def test_a_raw_prompt_that_is_the_rendered_one_has_its_calibration(client: httpx.AsyncClient) -> None:
    body = {"prompt": f"[user]{KNOWN}.[assistant]", "responses": ["7", "2"]}
    raw = (await client.post("/v1/rewards", json=body)).json()
    chat = (await client.post("/v1/rewards", json={"messages": ASKED, "responses": ["7", "2"]})).json()
    assert raw == chat
    assert [scored["reward"] for scored in raw["rewards"]] == [7, 2]
    assert raw["calibration"]["scope"] == "prompt"


async def test_openai_choices_are_n_best_first(client: httpx.AsyncClient) -> None:
    body = {"messages": ASKED, "n": 2, "best_of": 6, "seed": 0, "model": "fake"}
    best = (await client.post("/v1/chat/completions", json=body)).json()
    assert [choice["message"]["content"] for choice in best["choices"]] == ["answer 5", "answer 4"]
    assert best["usage"]["completion_tokens"] == 18
    text = {"prompt": "x", "worst_of": 6, "seed": 0}
    worst = (await client.post("/v1/completions", json=text)).json()
    assert [choice["text"] for choice in worst["choices"]] == ["answer 0"]
    plain = (await client.post("/v1/completions", json={"prompt": "x", "n": 3, "seed": 7})).json()
    assert [choice["text"] for choice in plain["choices"]] == ["answer 7", "answer 8", "answer 9"]
    assert plain["procedure"] == "standard"


async def test_the_default_is_the_bundles_sampling_law(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 2})
    await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 1, "temperature": 0, "max_tokens": 5, "stop": "x"})
    first, second, third = engines.drawn
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (1.0, 1.0, 0, 8)
    assert second.seed == first.seed + 1
    assert (third.temperature, third.max_tokens, third.stop) == (0, 5, ("x",))


async def test_a_policy_for_a_mixture_answers_what_no_other_is_nearer_to(engines: FakeEngines) -> None:
    versatile = "standard+best-of-4+worst-of-4"
    cases = [
        ({"best": "best-of-4", "all": versatile}, "best-of-n", {"n": 4}, "best"),
        ({"all": versatile, "best": "best-of-4"}, "best-of-n", {"n": 4}, "best"),
        ({"best": "best-of-4", "all": versatile}, "worst-of-n", {"n": 4}, "all"),
        ({"best": "best-of-4", "all": versatile}, "chat/completions", {}, "all"),
        ({"best": "best-of-4", "all": versatile, "plain": "standard"}, "chat/completions", {}, "plain"),
    ]
    for policies, endpoint, fields, policy in cases:
        app = create_app(Settings(max_n=4), engines, replace(fake_served(), policies=policies))
        async with app.router.lifespan_context(app), client_of(app) as client:
            answer = (await client.post(f"/v1/{endpoint}", json={"messages": ASKED, **fields})).json()
            assert answer["model"] == policy


async def test_a_bundle_for_a_mixture_answers_by_one_draw_and_refuses_the_mixture(engines: FakeEngines) -> None:
    app = create_app(Settings(max_n=4), engines, replace(fake_served(), policies={"all": "best-of-4+worst-of-4"}))
    async with app.router.lifespan_context(app), client_of(app) as client:
        answer = (await client.post("/v1/chat/completions", json={"messages": ASKED})).json()
        assert (answer["model"], answer["procedure"], len(answer["choices"])) == ("all", "standard", 1)
        body = {"messages": ASKED, "model": "all:best-of-2+worst-of-2"}
        for path in ("chat/completions", "best-of-n"):
            refused = await client.post(f"/v1/{path}", json=body | ({"n": 2} if path == "best-of-n" else {}))
            assert refused.status_code == 404
            assert refused.json()["error"]["message"] == (
                "model: got 'all:best-of-2+worst-of-2', accepted: after the colon, best-of-N or worst-of-N, perhaps "
                "with a target quantile as in best-of-16@0.95, or controlled-KxM"
            )


async def test_a_request_is_drawn_with_the_policy_it_names_or_with_the_nearest(engines: FakeEngines) -> None:
    served = replace(fake_served(), policies={"best": "best-of-4", "worst": "worst-of-4", "plain": "standard"})
    app = create_app(Settings(max_n=4), engines, served)
    cases = [
        ("best-of-n", {"n": 4}, "best"),
        ("worst-of-n", {"n": 2}, "worst"),
        ("worst-of-n", {"n": 2, "model": "auto"}, "worst"),
        ("best-of-n", {"n": 1}, "plain"),
        ("best-of-n", {"n": 4, "model": "worst"}, "worst"),
        ("best-of-n", {"n": 4, "model": "worst:best-of-4"}, "worst"),
        ("chat/completions", {}, "plain"),
        ("chat/completions", {"worst_of": 4}, "worst"),
        ("chat/completions", {"model": "auto:best-of-3"}, "best"),
    ]
    async with app.router.lifespan_context(app), client_of(app) as client:
        for endpoint, fields, policy in cases:
            answer = (await client.post(f"/v1/{endpoint}", json={"messages": ASKED, **fields})).json()
            assert answer["model"] == policy == engines.drawn[-1].policy, fields
        scored = (await client.post("/v1/rewards", json={"prompt": "x", "responses": ["1"], "model": "worst"})).json()
        assert scored["model"] == "worst"
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        assert listed[:4] == ["best", "worst", "plain", "auto"]
        assert "auto:worst-of-4" in listed
        assert "best:best-of-8" not in listed  # above max_n
        refused = await client.post("/v1/chat/completions", json={"messages": ASKED, "model": "demo"})
        assert refused.status_code == 404
        assert refused.json()["error"]["message"].startswith("model: got 'demo', accepted: best, worst, plain, auto,")


async def test_a_name_with_a_procedure_is_decoded_by_it(client: httpx.AsyncClient) -> None:
    body = {"messages": ASKED, "model": "fake:best-of-6", "seed": 0}
    named = (await client.post("/v1/chat/completions", json=body)).json()
    said = (await client.post("/v1/chat/completions", json={"messages": ASKED, "best_of": 6, "seed": 0})).json()
    assert named["procedure"] == "best-of-6"
    assert named["choices"] == said["choices"]


async def test_readiness_follows_the_engines(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    assert (await client.get("/ready")).status_code == 200
    engines.dead = True
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready")).status_code == 503
    answer = await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 2})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"
    assert "infalign_engines_up 0.0" in (await client.get("/metrics")).text


async def test_one_failed_score_fails_the_request_and_aborts_the_rest(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.fail_scoring_after = 3
    answer = await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 8})
    assert answer.status_code == 503
    assert engines.running == 0
    assert "infalign_aborted_candidates_total 5.0" in (await client.get("/metrics")).text


async def test_a_client_that_goes_away_frees_its_candidates(app: Any, engines: FakeEngines) -> None:
    engines.hang = True
    left = Exchange("/v1/best-of-n", [json.dumps({"prompt": "x", "n": 8}).encode()])
    answering = asyncio.create_task(left.through(app))
    while engines.running < 8:
        await asyncio.sleep(0)
    left.hung_up.set()
    await answering
    assert engines.running == 0
    assert left.status == 499


async def test_engines_that_do_not_start_are_reported() -> None:
    class Broken(FakeEngines):
        async def start(self) -> None:
            raise RuntimeError("no memory")

    failures: list[BaseException] = []
    app = create_app(Settings(), Broken(), fake_served(), failures.append)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/ready")).status_code == 503
        while not failures:
            await asyncio.sleep(0)
    assert [str(failure) for failure in failures] == ["no memory"]


async def test_metrics_count_what_happened(client: httpx.AsyncClient) -> None:
    await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 4, "seed": 0})
    await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 0})
    text = (await client.get("/metrics")).text
    assert 'infalign_candidates_total{procedure="best-of-n"} 4.0' in text
    assert 'infalign_candidate_tokens_total{procedure="best-of-n"} 12.0' in text
    assert 'infalign_requests_total{code="200",route="/v1/best-of-n"} 1.0' in text
    assert 'infalign_requests_total{code="400",route="/v1/best-of-n"} 1.0' in text
    assert 'infalign_calibration_lookups_total{scope="prompt",source="bundle"} 1.0' in text
    assert "infalign_resident_memory_bytes" in text


async def test_several_rewards_are_combined_and_each_is_shown() -> None:
    served = fake_served(weights={"helpful": 3, "terse": 1})
    app = create_app(Settings(), engines := FakeEngines(), served)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        body = {"messages": ASKED, "n": 10, "seed": 20, "return_candidates": True}
        best = (await client.post("/v1/best-of-n", json=body)).json()
        chat = (await client.post("/v1/chat/completions", json={"messages": ASKED, "best_of": 4, "seed": 0})).json()
        given = {"messages": ASKED, "responses": ["7", "2"]}
        scored = (await client.post("/v1/rewards", json=given)).json()
        other = (await client.post("/v1/rewards", json=given | {"messages": None, "prompt": "else"})).json()
    for candidate in best["candidates"]:
        digit = candidate["seed"] % 10
        assert candidate["rewards"] == {"helpful": digit, "terse": 9 - digit}
        assert candidate["reward"] == pytest.approx((3 * (digit + 0.5) + (9.5 - digit)) / 40)
        assert candidate["quantile"] == pytest.approx((digit + 1) / 11)
    assert best["selected"][0]["rewards"] == {"helpful": 9, "terse": 0}
    assert best["calibration"] == {"scope": "prompt", "samples": 10}
    assert chat["choices"][0]["rewards"] == {"helpful": 3, "terse": 6}
    assert [row["rewards"]["helpful"] for row in scored["rewards"]] == [7, 2]
    assert scored["rewards"][0]["quantile"] > 0.5 > scored["rewards"][1]["quantile"]
    assert other["calibration"]["scope"] == "global"
    assert other["rewards"] == scored["rewards"]  # all that is pooled is the one calibrated prompt


async def test_every_reward_model_reads_with_its_own_tokenizer() -> None:
    class Wordy(CharacterTokenizer):
        """Two tokens a character."""

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(character) for character in text for _ in range(2)]}

    served = fake_served(weights={"plain": 1, "wordy": 1})
    served = replace(served, tokenizers=(CharacterTokenizer(), {"plain": CharacterTokenizer(), "wordy": Wordy()}))
    engines, read = FakeEngines(), []
    score = engines.score

    async def watched(tokens: Sequence[list[int]]) -> list[float]:
        read.append([len(one) for one in tokens])
        return await score(tokens)

    engines.score = watched  # type: ignore[method-assign]
    app = create_app(Settings(), engines, served)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        fits = await client.post("/v1/rewards", json={"prompt": "x" * 90, "responses": ["7"]})
        long = await client.post("/v1/rewards", json={"prompt": "x" * 120, "responses": ["7"]})
    assert (fits.status_code, read) == (200, [[92, 184]])
    assert (long.status_code, long.json()["error"]["param"]) == (400, "prompt")
    assert "242 tokens" in long.json()["error"]["message"]


async def test_one_reward_is_shown_once(client: httpx.AsyncClient) -> None:
    best = (await client.post("/v1/best-of-n", json={"messages": ASKED, "n": 1})).json()
    chat = (await client.post("/v1/chat/completions", json={"messages": ASKED})).json()
    scored = (await client.post("/v1/rewards", json={"messages": ASKED, "responses": ["7"]})).json()
    for shown in (best["selected"][0], chat["choices"][0], scored["rewards"][0]):
        assert "rewards" not in shown
        assert shown["quantile"]
