"""Adaptive N over engines in memory: when draws stop, what the answer says of it, faults, and what is measured."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from infalign import BestOfN, Target
from server.app import create_app
from server.decoding.rank_laws import predict_ranks
from server.decoding.regret import MAX_MEASUREMENTS
from server.decoding.regret import WAVE as REGRET_WAVE
from server.engines import RequestFailed
from server.settings import Settings
from tests.asgi import Exchange
from tests.fakes import KNOWN, WEAK, FakeEngines, ScriptedEngines, fake_served
from tests.keys import bearer, keys_file
from tests.streams import events
from tests.unit.server.conftest import client_of, metric

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]
BEST, WORST, CHAT = "/v1/best-of-n", "/v1/worst-of-n", "/v1/chat/completions"
TARGET = {"messages": ASKED, "n": 16, "target_quantile": 0.8, "return_candidates": True}
"""It is met by an answer that ends with 9: of the anchors 0 to 9, it ties with the highest."""
WAVE = Target(BestOfN(16), 0.8).waves(10, predict_ranks(WEAK, 10))[0]
FAILED = RequestFailed("it failed")


@asynccontextmanager
async def adaptive(engines: FakeEngines, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(max_n=16, **settings), engines, fake_served(alignment=WEAK))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


@pytest.fixture
async def client(engines: FakeEngines) -> AsyncIterator[httpx.AsyncClient]:
    async with adaptive(engines, regret_share=0) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str = BEST, **fields: Any) -> Any:
    response = await client.post(path, json=TARGET | fields)
    assert response.status_code == 200, response.text
    return response.json()


async def test_draws_stop_after_the_wave_that_reaches_the_target(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    assert 1 < WAVE < 8
    answer = await post(client, seed=9 - WAVE)  # the first candidate of the second wave
    stopping = answer["stopping"]
    assert answer["selected"][0]["reward"] == 9
    assert [one["seed"] for one in answer["candidates"]] == list(range(9 - WAVE, 9 + WAVE))
    assert stopping["reason"] == "target"
    assert (stopping["drawn"], stopping["asked"], stopping["waves"]) == (2 * WAVE, 16, 2)
    assert stopping["threshold"] == pytest.approx(9.5 / 11)
    rule = Target(BestOfN(16), 0.8)
    calibration = fake_served().bundle.combination.table.lookup(next(iter(fake_served().bundle.combination.table.keys)))
    assert stopping["miss_probability"] == pytest.approx(rule.miss_probability(9, calibration))
    assert stopping["basis"] == "prompt"
    assert answer["theory"]["n"] == 2 * WAVE
    assert answer["usage"]["completion_tokens"] == 3 * 2 * WAVE
    assert answer["procedure"] == "best-of-16"
    assert len(engines.drawn) == 2 * WAVE


async def test_the_seed_determines_the_answer(client: httpx.AsyncClient) -> None:
    first, again = await post(client, seed=3), await post(client, seed=3)
    assert [first["candidates"], first["stopping"]] == [again["candidates"], again["stopping"]]


async def test_the_cap_ends_draws(client: httpx.AsyncClient) -> None:
    answer = await post(client, n=6, seed=0)
    assert answer["stopping"]["reason"] == "cap"
    assert answer["stopping"]["drawn"] == 6
    assert answer["selected"][0]["reward"] == 5
    unreachable = await post(client, target_quantile=0.995)
    assert unreachable["stopping"]["waves"] == 1
    assert unreachable["stopping"]["drawn"] == 16
    assert "threshold" not in unreachable["stopping"]


async def test_worst_of_n_stops_at_the_target_or_below(client: httpx.AsyncClient) -> None:
    answer = await post(client, WORST, target_quantile=0.2, seed=30, n=16)
    assert answer["stopping"]["reason"] == "target"
    assert answer["selected"][0]["reward"] == 0
    assert answer["stopping"]["threshold"] == pytest.approx(1.5 / 11)
    assert 0 < answer["stopping"]["miss_probability"] < 1


async def test_a_cost_is_a_rule_too(client: httpx.AsyncClient) -> None:
    fields = {"messages": ASKED, "n": 16, "seed": 4}
    cheap = (await client.post(BEST, json=fields | {"cost_per_draw": 0.001})).json()
    dear = (await client.post(BEST, json=fields | {"cost_per_draw": 0.4})).json()
    assert dear["stopping"]["reason"] == "cost"
    assert dear["stopping"]["drawn"] == 1
    assert "miss_probability" not in dear["stopping"]
    assert cheap["stopping"]["drawn"] > 4
    tokens = (await client.post(BEST, json=fields | {"cost_per_token": 0.4 / 3})).json()  # a draw has 3 tokens
    assert tokens["stopping"]["reason"] == "cost"
    assert tokens["stopping"]["drawn"] == 4
    assert tokens["stopping"]["threshold"] == dear["stopping"]["threshold"]
    priceless = (await client.post(BEST, json=fields | {"cost_per_token": 0.4})).json()
    assert priceless["stopping"]["drawn"] == 4
    assert (await client.post(BEST, json=fields | {"cost_per_token": 1e-9})).json()["stopping"]["drawn"] > 4


async def test_greedy_sampling_needs_one_draw(client: httpx.AsyncClient) -> None:
    answer = await post(client, temperature=0, seed=1)
    assert answer["stopping"]["reason"] == "greedy"
    assert answer["stopping"]["drawn"] == 1
    assert answer["greedy"] is True
    assert (await post(client, temperature=0, top=3))["stopping"]["drawn"] == 3


async def test_as_many_are_drawn_as_are_selected(client: httpx.AsyncClient) -> None:
    answer = await post(client, seed=9, top=8)
    assert len(answer["selected"]) == 8
    assert answer["stopping"]["drawn"] == 8


async def test_a_key_without_probe_sees_none_of_the_lower_half(engines: FakeEngines, tmp_path: Any) -> None:
    async with adaptive(engines, keys=keys_file(tmp_path), regret_share=0) as client:
        headers = bearer("app")
        for top in (1, 4):
            body = {"messages": ASKED, "n": 16, "seed": 9, "target_quantile": 0.8, "top": top}
            answer = (await client.post(BEST, json=body, headers=headers)).json()
            assert len(answer["selected"]) == top
            assert answer["stopping"]["drawn"] == max(WAVE, 2 * top if top > 1 else 1)
        refused = await client.post(BEST, json=TARGET, headers=headers)
        assert refused.status_code == 403
        worst = await client.post(WORST, json={"messages": ASKED, "target_quantile": 0.1}, headers=headers)
        assert worst.status_code == 403


async def test_the_openai_endpoints_say_the_same(client: httpx.AsyncClient) -> None:
    fields = {"messages": ASKED, "seed": 9 - WAVE, "best_of": 16, "target_quantile": 0.8}
    chat = (await client.post(CHAT, json=fields)).json()
    own = await post(client, seed=9 - WAVE)
    assert chat["stopping"] == own["stopping"]
    assert chat["choices"][0]["message"]["content"] == own["selected"][0]["text"]
    named = {"messages": ASKED, "seed": 9 - WAVE, "model": "fake:best-of-16@0.8"}
    assert (await client.post(CHAT, json=named)).json()["stopping"] == own["stopping"]
    agreed = named | {"target_quantile": 0.8, "best_of": 16}
    assert (await client.post(CHAT, json=agreed)).json()["stopping"] == own["stopping"]
    text = {"prompt": f"[user]{KNOWN}.[assistant]", "worst_of": 8, "target_quantile": 0.2, "seed": 0}
    assert (await client.post("/v1/completions", json=text)).json()["stopping"]["reason"] == "target"
    assert (await client.get("/v1/models/fake:best-of-16@0.8")).json()["id"] == "fake:best-of-16@0.8"


async def test_streams_tell_of_every_candidate_and_then_why_they_stopped(client: httpx.AsyncClient) -> None:
    whole = await post(client, seed=9 - WAVE)
    streamed = list(events((await client.post(BEST, json=TARGET | {"seed": 9 - WAVE, "stream": True})).text))
    assert [name for name, _ in streamed].count("candidate") == 2 * 2 * WAVE
    assert streamed[-1][0] == "answer"
    assert streamed[-1][1]["stopping"] == whole["stopping"]
    fields = {"messages": ASKED, "seed": 9 - WAVE, "best_of": 16, "target_quantile": 0.8, "stream": True}
    chunks = [data for _, data in events((await client.post(CHAT, json=fields)).text)]
    assert chunks[-1]["stopping"] == whole["stopping"]
    assert all("stopping" not in chunk for chunk in chunks[:-1])


async def test_a_pooled_calibration_says_that_it_is_one(client: httpx.AsyncClient) -> None:
    answer = await post(client, messages=None, prompt="else", seed=9)
    assert answer["calibration"]["scope"] == "global"
    assert answer["stopping"]["basis"] == "pooled"
    assert 0 <= answer["stopping"]["miss_probability"] <= 1


@pytest.mark.parametrize(
    ("path", "fields", "field", "message"),
    [
        (BEST, {"target_quantile": 1}, "target_quantile", "got 1"),
        (BEST, {"target_quantile": 0}, "target_quantile", "got 0"),
        (BEST, {"cost_per_draw": 0.5}, "cost_per_draw", "got 0.5"),
        (BEST, {"cost_per_token": 0}, "cost_per_token", "got 0"),
        (BEST, {"target_quantile": 0.5, "target_bound": "median"}, "target_bound", "point"),
        (BEST, {"target_bound": "credible"}, "target_bound", "accepted: only with target_quantile"),
        (BEST, {"target_bound": "point", "cost_per_draw": 0.1}, "target_bound", "accepted: only with target_quantile"),
        (BEST, {"target_quantile": 0.5, "cost_per_draw": 0.1}, "cost_per_draw", "accepted: one of target_quantile"),
        (BEST, {"cost_per_token": 0.1, "cost_per_draw": 0.1}, "cost_per_token", "accepted: one of target_quantile"),
        (CHAT, {"target_quantile": 0.5}, "target_quantile", "with standard decoding, accepted: a procedure that"),
        (CHAT, {"cost_per_token": 0.1, "n": 2}, "cost_per_token", "with standard decoding"),
        (CHAT, {"model": "fake:best-of-4@0.9", "target_quantile": 0.8}, "model", "accepted: the rule of the request"),
        (CHAT, {"model": "fake:best-of-4@0.9", "cost_per_draw": 0.1}, "model", "cost_per_draw: 0.1"),
        (CHAT, {"model": "fake:best-of-4@0.9", "best_of": 5}, "model", "accepted: the procedure of the request"),
        (CHAT, {"model": "fake:best-of-4@1.5"}, "model", "as in best-of-16@0.95"),
        (CHAT, {"model": "fake:best-of-4@"}, "model", "as in best-of-16@0.95"),
        (CHAT, {"model": "fake:standard@0.5"}, "model", "as in best-of-16@0.95"),
        (BEST, {"target_quantile": 0.5, "n": 17}, "n", "accepted: at most 16"),
        (BEST, {"target_quantile": 0.5, "n": 4, "top": 5}, "top", "accepted: at most 4"),
        (BEST, {"target_quantile": 0.5, "n": 4, "min_candidates": 5}, "min_candidates", "accepted: at most 4"),
    ],
)
async def test_rules_that_do_not_fit_are_refused_by_name(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], field: str, message: str
) -> None:
    response = await client.post(path, json={"messages": ASKED} | fields)
    error = response.json()["error"]
    assert response.status_code in (400, 404)
    assert error["param"] == field
    assert message in error["message"]


async def test_a_failed_candidate_fails_the_request_unless_it_says_otherwise(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.faults = {1: FAILED}
    failed = await client.post(BEST, json=TARGET | {"seed": 0})
    assert failed.status_code == 502
    assert engines.running == 0
    replaced = await post(client, seed=0, min_candidates=9)
    assert replaced["selected"][0]["reward"] == 9
    assert replaced["stopping"]["reason"] == "target"
    assert replaced["missing"] == {"asked": 16, "reasons": {"engine_error": 1}}
    assert replaced["stopping"]["drawn"] == len(replaced["candidates"]) + 1


async def test_at_the_cap_there_must_be_enough_candidates(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.faults = {1: FAILED, 2: FAILED}
    enough = await post(client, seed=0, n=8, min_candidates=6)
    assert enough["stopping"]["reason"] == "cap"
    assert len(enough["candidates"]) == 6
    short = await client.post(BEST, json=TARGET | {"seed": 0, "n": 8, "min_candidates": 7})
    assert short.status_code == 502
    reached = await post(client, seed=0, n=10, min_candidates=9)  # 8 of 10 are there, but one of them is the target
    assert reached["stopping"]["reason"] == "target"


async def test_failures_are_replaced_until_enough_can_be_shown(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.faults = {10: FAILED, 11: FAILED}
    answer = await post(client, seed=9, top=WAVE, min_candidates=1)
    assert len(answer["selected"]) == WAVE
    assert answer["stopping"]["drawn"] > WAVE


async def test_time_that_runs_out(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.slow = {WAVE}  # of the second wave
    late = await client.post(BEST, json=TARGET | {"seed": 0, "timeout": 0.3})
    assert late.status_code == 504
    enough = await post(client, seed=0, timeout=0.3, min_candidates=WAVE)
    assert enough["stopping"]["reason"] == "timeout"
    assert enough["stopping"]["drawn"] == 2 * WAVE
    assert enough["missing"]["reasons"] == {"deadline_exceeded": 1}
    short = await client.post(BEST, json=TARGET | {"seed": 0, "timeout": 0.3, "min_candidates": 2 * WAVE})
    assert short.status_code == 504
    assert engines.running == 0


async def test_a_client_that_leaves_during_a_wave_frees_its_candidates(engines: FakeEngines) -> None:
    engines.slow = set(range(WAVE, 2 * WAVE))
    app = create_app(Settings(max_n=16), engines, fake_served(alignment=WEAK))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        left = Exchange(BEST, [json.dumps(TARGET | {"seed": 0}).encode()])
        answering = asyncio.create_task(left.through(app))
        while len(engines.drawn) < 2 * WAVE:
            await asyncio.sleep(0)
        left.hung_up.set()
        await answering
        assert left.status == 499
        assert engines.running == 0
        assert await metric(client, "infalign_aborted_candidates_total") == WAVE
        assert await metric(client, "infalign_stops_total") == 0


async def test_engines_that_die_between_waves(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.fail_scoring_after = WAVE
    assert (await client.post(BEST, json=TARGET | {"seed": 0})).status_code == 503
    engines.fail_scoring_after = WAVE
    assert (await client.post(BEST, json=TARGET | {"seed": 0, "min_candidates": WAVE + 1})).status_code == 503
    engines.fail_scoring_after = WAVE
    answer = await post(client, seed=0, min_candidates=WAVE)
    assert answer["stopping"]["reason"] == "cap"
    assert answer["missing"]["reasons"] == {"not_ready": 16 - WAVE}


async def test_candidates_without_an_answer_are_replaced() -> None:
    engines = ScriptedEngines("<think>a</think>1", "<think>a…")
    async with adaptive(engines, reasoning_parser="qwen3", regret_share=0) as client:
        answer = await post(client, seed=0, n=8)
        assert answer["stopping"]["reason"] == "cap"
        assert answer["missing"] == {"asked": 8, "reasons": {"no_answer": 4}}
        engines.texts = ("<think>a…",)
        none = await client.post(BEST, json=TARGET | {"seed": 0, "n": 8})
        assert none.json()["error"]["code"] == "no_answer"


async def test_only_the_first_wave_counts_for_drift(client: httpx.AsyncClient) -> None:
    await post(client, seed=9 - WAVE)
    assert await metric(client, "infalign_quantile_drift_samples") == WAVE


async def test_metrics_say_what_was_saved(client: httpx.AsyncClient) -> None:
    await post(client, seed=9)
    await post(client, seed=0, n=6)
    text = (await client.get("/metrics")).text
    assert 'infalign_stops_total{procedure="best-of-n",reason="target"} 1.0' in text
    assert 'infalign_stops_total{procedure="best-of-n",reason="cap"} 1.0' in text
    assert await metric(client, "infalign_saved_draws_total") == 16 - WAVE
    assert await metric(client, "infalign_saved_tokens_total") == 3 * (16 - WAVE)
    assert await metric(client, "infalign_waves_count") == 2
    assert await metric(client, "infalign_n_requested_sum") == 22
    assert await metric(client, "infalign_regret_count") == 0


async def test_regret_is_measured_with_the_seeds_that_were_left(engines: FakeEngines) -> None:
    async with adaptive(engines, regret_share=1) as client:
        answer = await post(client, seed=8, target_quantile=0.4)  # 8 is enough, and 9 comes later or with it
        drawn = answer["stopping"]["drawn"]
        while not await metric(client, "infalign_regret_count"):
            await asyncio.sleep(0)
        assert sorted(sampling.seed for sampling in engines.drawn) == list(range(8, 24))
        selected = answer["selected"][0]["quantile"]
        assert await metric(client, "infalign_regret_sum") == pytest.approx(10 / 11 - selected)
        assert await metric(client, "infalign_candidates_total") == drawn
        assert await metric(client, "infalign_candidate_tokens_total") == answer["usage"]["completion_tokens"]


async def test_regret_is_bounded_and_ends_with_the_server(engines: FakeEngines) -> None:
    async with adaptive(engines, regret_share=1) as client:
        engines.slow = set(range(9 + WAVE, 100))
        for _ in range(5):
            await post(client, seed=9)
            await asyncio.sleep(0.01)
        assert engines.running == MAX_MEASUREMENTS * REGRET_WAVE
    assert engines.running == 0


async def test_a_failed_measurement_is_dropped(engines: FakeEngines) -> None:
    async with adaptive(engines, regret_share=1) as client:
        engines.faults = {20: FAILED}
        await post(client, seed=9)
        while len(engines.drawn) < 12:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert engines.running == 0
        assert await metric(client, "infalign_regret_count") == 0


async def test_limits_and_the_audit_log_count_the_cap(engines: FakeEngines, tmp_path: Any) -> None:
    audit = tmp_path / "audit.log"
    async with adaptive(engines, regret_share=0, audit_log=audit) as client:
        answer = await post(client, WORST, target_quantile=0.5, seed=20)
        assert answer["stopping"]["drawn"] < 16
        assert json.loads(audit.read_text())["n"] == 16
        refused = await client.post(BEST, json=TARGET | {"logprobs": 20, "max_tokens": 300})
        assert refused.json()["error"]["param"] == "logprobs"


async def test_a_busy_server_measures_no_regret(engines: FakeEngines) -> None:
    async with adaptive(engines, regret_share=1, max_requests=1) as client:
        await post(client, seed=9)
        await asyncio.sleep(0.01)
        assert len(engines.drawn) == WAVE  # the request itself takes more than half of the places
