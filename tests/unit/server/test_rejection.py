"""Early rejection over engines in memory: who is rejected, what the answer says of it, faults, and what is measured."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from infalign import BestOfN, PrefixScorer, Rehearsal, Target, WorstOfN
from infalign.manifest import RejectionRecord, ShareRecord
from server.app import create_app
from server.decoding.rank_laws import predict_ranks
from server.decoding.rounds import PLACES
from server.engines import EnginesDown, RequestFailed
from server.settings import Settings
from tests import fakes
from tests.asgi import Exchange
from tests.fakes import KNOWN, WEAK, FakeEngines, SteppedEngines, fake_served
from tests.keys import bearer, keys_file
from tests.streams import events
from tests.unit.server.conftest import client_of, metric

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]
BEST, WORST, CHAT = "/v1/best-of-n", "/v1/worst-of-n", "/v1/chat/completions"
FAILED = RequestFailed("it failed")
FIT = RejectionRecord(threshold=0.02, loss=0, loss_low=0, loss_high=0, saved=0, saved_low=0, saved_high=0)
SHARE = ShareRecord(share=0.5, tokens=1, tokens_low=1, tokens_high=1)
SCORER = fakes.SCORER.model_copy(
    update={
        "edges": tuple(range(11)),
        "checkpoint": 2,
        "rejection": dict.fromkeys(("best-of-8", "worst-of-8"), FIT),
        "shares": dict.fromkeys(("best-of-n", "worst-of-n"), SHARE),
        "measured": {},
    }
)
"""A checkpoint comes every two tokens."""
TEXTS = ("11111111", "99999999", "222222222", "888888", "3", "", "77777777", "4444444")
"""By the seed. 0, 2, 6 and 7 are rejected at the first checkpoint. 4 and 5 end before it."""
BODY = {"messages": ASKED, "n": 8, "seed": 0, "early_rejection": True, "return_candidates": True}


@asynccontextmanager
async def serving(engines: FakeEngines, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        Settings(max_n=16, **{"regret_share": 0} | settings), engines, fake_served(scorer=SCORER, alignment=WEAK)
    )
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


@pytest.fixture
def engines() -> SteppedEngines:
    return SteppedEngines(*TEXTS)


@pytest.fixture
async def client(engines: SteppedEngines) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engines) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str = BEST, **fields: Any) -> Any:
    response = await client.post(path, json=BODY | fields)
    assert response.status_code == 200, response.text
    return response.json()


def indexes(answer: Any) -> list[int]:
    return [candidate["index"] for candidate in answer["candidates"]]


async def test_candidates_that_will_hardly_be_the_best_are_rejected(
    client: httpx.AsyncClient, engines: SteppedEngines
) -> None:
    answer = await post(client)
    assert answer["selected"][0]["text"] == "99999999"
    assert indexes(answer) == [1, 3, 4, 5]
    assert sorted(engines.aborted) == [0, 2, 6, 7]
    assert answer["rejection"] == {"rejected": 4, "tokens": sum(engines.tokens[seed] for seed in (0, 2, 6, 7))}
    assert answer["usage"]["completion_tokens"] == sum(engines.tokens.values()) < sum(map(len, TEXTS))
    assert answer["theory"]["n"] == 8
    assert "missing" not in answer
    assert "stopping" not in answer
    plain = await post(client, early_rejection=False)
    assert plain["selected"] == answer["selected"]
    assert indexes(plain) == list(range(8))
    assert "rejection" not in plain


async def test_beginnings_are_read_once_at_each_checkpoint(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    await post(client)
    read = [text.removeprefix(f"[user]{KNOWN}.[assistant]") for text in engines.prefixes]
    assert sorted(text for text in read if len(text) == 2) == ["11", "22", "44", "77", "88", "99"]
    assert [text for text in read if len(text) > 4] == ["999999"]  # and none of a whole response


@pytest.mark.parametrize(
    ("pauses", "prefix_pause"),
    [({}, 0), ({}, 7), ({1: 9}, 0), ({0: 9, 3: 4}, 3), (dict.fromkeys((1, 3, 4, 5, 6), 20), 0)],
    ids=["even", "slow scorer", "slow best", "mixed", "rejected ones first"],
)
async def test_the_seed_determines_the_answer_whoever_is_quick(
    client: httpx.AsyncClient, engines: SteppedEngines, pauses: dict[int, int], prefix_pause: int
) -> None:
    even = await post(client)
    engines.pauses, engines.prefix_pause = pauses, prefix_pause
    answer = await post(client)
    assert answer["candidates"] == even["candidates"]
    assert answer["selected"] == even["selected"]
    assert answer["rejection"]["rejected"] == even["rejection"]["rejected"]


@pytest.mark.parametrize("path", [BEST, WORST])
@pytest.mark.parametrize("target", [None, 0.8])
async def test_a_rehearsal_of_the_same_candidates_selects_the_same(
    client: httpx.AsyncClient, engines: SteppedEngines, path: str, target: float | None
) -> None:
    random = np.random.default_rng(7)
    is_best, n = path == BEST, 8
    procedure = BestOfN(n) if is_best else WorstOfN(n)
    calibration = fake_served().bundle.combination.table.lookup(next(iter(fake_served().bundle.combination.table.keys)))
    ranks = predict_ranks(WEAK, 10)
    rejection, width, fields, stop = SCORER.rejection_for(procedure, ranks), n, {}, None
    if target:
        rule = Target(procedure, target if is_best else 1 - target)
        rejection = SCORER.rejection_under(rule, 10, ranks)
        width = max(1, round(rule.waves(10, ranks)[0] * PLACES))
        fields, stop = {"target_quantile": rule.quantile}, rule.stop_quantile(calibration)
    scorer, started = PrefixScorer(np.array(SCORER.edges)), set()
    for _ in range(12):
        lengths = random.integers(1, 12, n)
        walks = np.clip(random.integers(0, 10, (n, 1)) + np.cumsum(random.integers(-1, 2, (n, 12)), axis=1), 0, 9)
        texts = ["".join(map(str, walk[:length])) for walk, length in zip(walks, lengths, strict=True)]
        outputs = -3.0 * np.abs(np.arange(10) - walks[:, 1::2, None])
        laws = scorer.quantile_law(np.concatenate([outputs, 0 * outputs], axis=-1)).probabilities
        rehearsal = Rehearsal(calibration.quantile([int(text[-1]) for text in texts]), lengths, laws, SCORER.checkpoint)
        run = (rehearsal if is_best else rehearsal.mirror).run(
            rejection, width, None if stop is None else stop if is_best else 1 - stop
        )
        engines.texts, engines.tokens = tuple(texts), {}
        engines.pauses = dict(enumerate(random.integers(0, 5, n).tolist()))
        answer = await post(client, path, n=n, **fields)
        assert answer["selected"][0]["index"] == run.selected
        assert len(engines.tokens) == run.started
        assert answer["usage"]["completion_tokens"] == sum(engines.tokens.values()) >= run.tokens
        started.add(int(run.started))
    assert bool(target) == (len(started) > 1)


async def test_a_candidate_that_is_ahead_is_rejected_although_it_has_ended(
    client: httpx.AsyncClient, engines: SteppedEngines
) -> None:
    engines.texts = ("119", "77777")
    engines.pauses = {1: 50}
    answer = await post(client, n=2)
    assert engines.aborted == []  # it has been drawn to the end, and scored as the best
    assert answer["selected"][0]["text"] == "77777"
    assert answer["rejection"] == {"rejected": 1, "tokens": 3}
    assert answer["usage"]["completion_tokens"] == 8


async def test_a_rule_is_met_by_a_candidate_that_ends_and_not_by_one_that_is_ahead(
    client: httpx.AsyncClient, engines: SteppedEngines
) -> None:
    engines.texts = ("7777777", "5999", "88888888")
    engines.pauses = {0: 50, 2: 50}
    answer = await post(client, n=16, target_quantile=0.8)
    assert answer["stopping"]["reason"] == "target"
    assert indexes(answer) == [1]
    engines.pauses = {1: 50}
    again = await post(client, n=16, target_quantile=0.8)
    assert indexes(again) == [1]
    assert answer["rejection"] | {"tokens": 0} == again["rejection"] | {"tokens": 0}


async def test_free_places_get_fresh_candidates_until_the_target_is_reached(
    client: httpx.AsyncClient, engines: SteppedEngines
) -> None:
    engines.texts = ("1111", "2222", "3333", "11111", "2222", "3333", "1111", "2222", "3333", "9999", "11111111")
    answer = await post(client, n=16, target_quantile=0.8)
    stopping, rejection = answer["stopping"], answer["rejection"]
    assert stopping["reason"] == "target"
    assert 10 <= stopping["drawn"] < 16
    assert stopping["asked"] == 16
    assert "waves" not in stopping
    assert answer["selected"][0]["seed"] == 9
    assert stopping["drawn"] == len(answer["candidates"]) + rejection["rejected"] + rejection["aborted"]
    assert rejection["rejected"] >= 4
    assert answer["theory"]["n"] == len(answer["candidates"]) + rejection["rejected"]
    assert engines.running == 0
    assert await metric(client, "infalign_aborted_candidates_total") == 0
    assert await metric(client, "infalign_waves_count") == 0


async def test_the_cap_ends_draws(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.texts = ("1111", "2222", "5555")
    answer = await post(client, target_quantile=0.9, n=6)
    assert answer["stopping"]["reason"] == "cap"
    assert answer["stopping"]["drawn"] == 6
    assert answer["rejection"]["aborted"] == 0
    assert answer["selected"][0]["text"] == "5555"


async def test_worst_of_n_rejects_what_will_hardly_be_the_worst(client: httpx.AsyncClient) -> None:
    answer = await post(client, WORST)
    assert {1, 3, 6}.isdisjoint(indexes(answer))
    assert answer["selected"][0]["reward"] == min(candidate["reward"] for candidate in answer["candidates"])
    stopped = await post(client, WORST, target_quantile=0.2, n=16)
    assert stopped["stopping"]["reason"] == "target"


async def test_responses_that_end_before_the_first_checkpoint(
    client: httpx.AsyncClient, engines: SteppedEngines
) -> None:
    engines.texts = ("1", "22", "", "3")
    answer = await post(client, n=4)
    assert answer["rejection"] == {"rejected": 0, "tokens": 0}
    assert answer["selected"][0]["text"] == "3"
    assert indexes(answer) == [0, 1, 2, 3]


@pytest.mark.parametrize("fields", [{"n": 1}, {"temperature": 0}, {"temperature": 0, "target_quantile": 0.5}])
async def test_nothing_is_read_where_nothing_can_be_rejected(
    client: httpx.AsyncClient, engines: SteppedEngines, fields: dict[str, Any]
) -> None:
    answer = await post(client, **fields)
    assert answer["rejection"]["rejected"] == 0
    assert engines.prefixes == []
    assert len(answer["candidates"]) == (8 if fields == {"temperature": 0} else 1)


async def test_the_last_one_of_all_is_not_read(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.texts = ("1111111111", "9999999999")
    answer = await post(client, n=2)
    assert answer["selected"][0]["text"] == "9999999999"
    assert len(engines.prefixes) < 5


async def test_a_scorer_that_was_fitted_to_reject_nobody_is_not_read(engines: SteppedEngines) -> None:
    app = create_app(Settings(), engines, fake_served(scorer=SCORER.model_copy(update={"rejection": {}})))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        assert indexes(await post(client)) == list(range(8))
        assert engines.prefixes == []


async def test_pooled_quantiles_reject_nobody(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.texts = ("9", "44444444", "55555555")
    ranked = await post(client, n=3)
    assert indexes(ranked) == [0]
    unknown = await post(client, n=3, messages=None, prompt="else")
    assert unknown["calibration"]["scope"] == "global"
    assert indexes(unknown) == [0, 2]


async def test_a_cost_is_a_rule_too(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.texts = ("55555555", "44444444", "11111111", "66666666", "7777777", "1111111")
    dear = await post(client, n=16, cost_per_draw=0.3)
    assert dear["stopping"]["reason"] == "cost"
    assert dear["stopping"]["drawn"] < 5
    tokens = await post(client, n=16, cost_per_token=0.001)
    assert tokens["stopping"]["drawn"] > 4
    assert {0, 1, 2, 3} <= set(indexes(tokens))  # they say how many tokens a draw has, so none of them is rejected
    assert tokens["rejection"]["rejected"] > 0
    late = await client.post(BEST, json=BODY | {"cost_per_token": 0.001, "timeout": 0.1, "messages": ASKED})
    assert late.status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (CHAT, {}, "got true with standard decoding, accepted: a procedure that"),
        (CHAT, {"best_of": 4, "n": 2}, "got true with n: 2, accepted: only with 1"),
        (BEST, {"top": 3}, "got true with top: 3, accepted: only with 1"),
        (WORST, {"early_rejection": "perhaps"}, "early_rejection"),
    ],
)
async def test_requests_that_do_not_fit_are_refused_by_name(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], message: str
) -> None:
    response = await client.post(path, json={"messages": ASKED, "early_rejection": True} | fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == "early_rejection"
    assert message in error["message"]


@pytest.mark.parametrize("served", [fake_served(), replace(fake_served(scorer=SCORER), runs_scorer=False)])
async def test_a_server_without_a_scorer_says_so(engines: SteppedEngines, served: Any) -> None:
    app = create_app(Settings(max_n=16), engines, served)
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        error = (await client.post(BEST, json=BODY)).json()["error"]
        assert error["param"] == "early_rejection"
        assert "this server has no prefix scorer" in error["message"]
        assert (await client.post(BEST, json=BODY | {"early_rejection": False})).status_code == 200


async def test_the_openai_endpoints_say_the_same(client: httpx.AsyncClient) -> None:
    own = await post(client)
    fields = {"messages": ASKED, "seed": 0, "early_rejection": True}
    for more in ({"best_of": 8}, {"model": "fake:best-of-8"}):
        chat = (await client.post(CHAT, json=fields | more)).json()
        assert chat["rejection"]["rejected"] == own["rejection"]["rejected"]
        assert chat["choices"][0]["message"]["content"] == own["selected"][0]["text"]
    text = {"prompt": f"[user]{KNOWN}.[assistant]", "seed": 0, "early_rejection": True, "worst_of": 8}
    worst = await post(client, WORST)
    assert (await client.post("/v1/completions", json=text)).json()["choices"][0]["text"] == worst["selected"][0][
        "text"
    ]


async def test_streams_tell_of_each_candidate_once(client: httpx.AsyncClient) -> None:
    whole = await post(client)
    streamed = list(events((await client.post(BEST, json=BODY | {"stream": True})).text))
    told = [(data["event"], data["index"]) for name, data in streamed if name == "candidate"]
    assert sorted(told) == sorted(
        [(event, index) for event in ("finished", "scored") for index in (1, 3, 4, 5)]
        + [("rejected", index) for index in (0, 2, 6, 7)]
    )
    assert all(data["completion_tokens"] >= 2 for _, data in streamed if data.get("event") == "rejected")
    assert streamed[-1][1]["selected"] == whole["selected"]
    assert streamed[-1][1]["rejection"]["rejected"] == 4
    chat = {"messages": ASKED, "seed": 0, "early_rejection": True, "best_of": 8, "stream": True}
    chat["stream_options"] = {"include_usage": True}
    chunks = [data for _, data in events((await client.post(CHAT, json=chat)).text)]
    assert sum(chunk.get("candidate", {}).get("event") == "rejected" for chunk in chunks) == 4
    *_, last, tokens = chunks
    assert last["rejection"]["rejected"] == 4
    assert tokens["usage"]["completion_tokens"] >= 8 + 6 + 1 + last["rejection"]["tokens"]


async def test_a_stream_does_not_depend_on_who_is_quick(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    told = []
    for pauses in ({}, {1: 9, 4: 30}):
        engines.pauses = pauses
        streamed = events((await client.post(BEST, json=BODY | {"stream": True})).text)
        told.append([(data["event"], data["index"]) for name, data in streamed if name == "candidate"])
    assert told[0] == told[1]


async def test_a_key_without_probe_gets_the_selected_one(engines: SteppedEngines, tmp_path: Any) -> None:
    async with serving(engines, keys=keys_file(tmp_path)) as client:
        body = {"messages": ASKED, "n": 8, "seed": 0, "early_rejection": True}
        answer = (await client.post(BEST, json=body, headers=bearer("app"))).json()
        assert [one["text"] for one in answer["selected"]] == ["99999999"]
        assert answer["rejection"]["rejected"] == 4
        streamed = list(events((await client.post(BEST, json=body | {"stream": True}, headers=bearer("app"))).text))
        shown = {key for name, data in streamed if name == "candidate" for key in data}
        assert shown == {"event", "index", "finish_reason", "completion_tokens"}
        assert (await client.post(BEST, json=BODY, headers=bearer("app"))).status_code == 403
        assert (await client.post(WORST, json=body, headers=bearer("app"))).status_code == 403


async def test_prompts_prefills_and_logprobs(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    await post(client, messages=None, prompt="else")
    assert {"else11", "else99"} <= set(engines.prefixes)
    turn = [*ASKED, {"role": "assistant", "content": "so "}]
    await post(client, messages=turn, continue_final_message=True, add_generation_prompt=False)
    assert any(text.endswith("so 99") for text in engines.prefixes)
    answer = await post(client, logprobs=1, stop=["x"], response_format={"type": "json_object"})
    assert len(answer["selected"][0]["logprobs"]) == 8


async def test_reasoning_is_read_as_it_is_drawn() -> None:
    engines = SteppedEngines("<think>9</think>9", "<think>a", "<think>22</think>2")
    async with serving(engines, reasoning_parser="qwen3") as client:
        answer = await post(client, n=3, logprobs=0)
        assert any(text.endswith("[assistant]<t") for text in engines.prefixes)
        assert answer["selected"][0]["text"] == "9"


@pytest.mark.parametrize("rule", [{}, {"target_quantile": 0.9}])
async def test_a_failed_candidate_fails_the_request_unless_it_says_otherwise(
    client: httpx.AsyncClient, engines: SteppedEngines, rule: dict[str, Any]
) -> None:
    engines.faults = {4: FAILED}
    failed = await client.post(BEST, json=BODY | rule)
    assert failed.status_code == 502
    assert engines.running == 0
    answer = await post(client, min_candidates=7, **rule)
    assert answer["missing"] == {"asked": 8, "reasons": {"engine_error": 1}}
    assert answer["selected"][0]["text"] == "99999999"
    engines.faults |= {3: FAILED}
    assert (await client.post(BEST, json=BODY | {"min_candidates": 7})).status_code == 502
    assert engines.running == 0


async def test_rejected_candidates_are_not_missing_but_somebody_must_be_left(
    client: httpx.AsyncClient, engines: SteppedEngines
) -> None:
    engines.texts = ("1111", "9999999999999999")
    engines.faults = {1: FAILED}
    assert (await client.post(BEST, json=BODY | {"n": 2, "min_candidates": 1})).status_code == 502
    replaced = await post(client, n=16, min_candidates=1, target_quantile=0.9)
    assert replaced["selected"][0]["index"] == 3


@pytest.mark.parametrize("rule", [{}, {"target_quantile": 0.95}])
async def test_time_that_runs_out(client: httpx.AsyncClient, engines: SteppedEngines, rule: dict[str, Any]) -> None:
    engines.texts, engines.stalls = ("55", "66", "9999999"), {2: 5}
    fields = {"n": 3, "timeout": 0.3, **rule}
    late = await client.post(BEST, json=BODY | fields)
    assert late.status_code == 504
    answer = await post(client, min_candidates=2, **fields)
    assert answer["selected"][0]["text"] == "66"
    assert answer["missing"] == {"asked": 3, "reasons": {"deadline_exceeded": 1}}
    assert not rule or answer["stopping"]["reason"] == "timeout"
    assert engines.running == 0


async def test_a_client_that_leaves_in_a_round_frees_its_candidates(engines: SteppedEngines) -> None:
    engines.stalls = {1: 5}
    app = create_app(Settings(max_n=16), engines, fake_served(scorer=SCORER, alignment=WEAK))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        left = Exchange(BEST, [json.dumps(BODY).encode()])
        answering = asyncio.create_task(left.through(app))
        while len(engines.aborted) < 4 or engines.running > 1:
            await asyncio.sleep(0)
        left.hung_up.set()
        await answering
        assert left.status == 499
        assert engines.running == 0
        assert await metric(client, "infalign_aborted_candidates_total") == 1
        assert await metric(client, "infalign_rejected_candidates_total") == 0


async def test_engines_that_die_between_rounds(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.stalls = {1: 5}
    for fields, status in (({}, 503), ({"min_candidates": 7}, 200)):
        asked = asyncio.create_task(client.post(BEST, json=BODY | fields))
        while len(engines.aborted) < 4 or engines.running > 1:
            await asyncio.sleep(0)
        engines.dead = True
        assert (await asked).status_code == status
        assert engines.running == 0
        engines.dead, engines.aborted = False, []


@pytest.mark.parametrize(
    "outputs", [[float("nan")] * 20, [float("inf")] * 20, [0.0] * 3, []], ids=["nan", "inf", "few", "none"]
)
async def test_a_scorer_that_makes_no_sense_rejects_nobody(
    client: httpx.AsyncClient, engines: SteppedEngines, outputs: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    engines.prefix_outputs = outputs
    with caplog.at_level(logging.WARNING):
        answer = await post(client)
    assert answer["rejection"] == {"rejected": 0, "tokens": 0, "unread": 6}
    assert indexes(answer) == list(range(8))
    assert answer["selected"][0]["text"] == "99999999"
    assert sum("prefix scorer" in line for line in caplog.messages) == 1
    assert await metric(client, "infalign_prefix_failures_total") == len(engines.prefixes)


async def test_one_that_cannot_be_read_is_kept(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    law = engines.score_prefix

    async def score_prefix(tokens: list[int]) -> list[float]:
        if chr(tokens[-1]) == "1":
            raise FAILED
        return await law(tokens)

    engines.score_prefix = score_prefix  # type: ignore[method-assign]
    answer = await post(client)
    assert 0 in indexes(answer)
    assert answer["rejection"]["rejected"] == 3
    assert answer["rejection"]["unread"] == 1


async def test_a_scorer_that_is_down_is_not_asked_again(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.prefix_fault = EnginesDown("it has died")
    answer = await post(client)
    assert answer["rejection"] == {"rejected": 0, "tokens": 0, "unread": 6}
    assert len(engines.prefixes) == 6
    assert indexes(answer) == list(range(8))


async def test_a_mistake_in_the_scorers_code_fails_no_request(
    client: httpx.AsyncClient, engines: SteppedEngines, caplog: pytest.LogCaptureFixture
) -> None:
    engines.prefix_fault = LookupError("a mistake")
    assert (await post(client))["rejection"]["unread"] == 6
    assert any("unexpected error in the prefix scorer" in line for line in caplog.messages)
    assert await metric(client, "infalign_prefix_failures_total") == len(engines.prefixes) == 6


async def test_a_scorer_that_hangs(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    engines.prefix_pause = 10**9
    answer = await post(client, timeout=0.2)  # all are drawn by then, ahead of their rounds
    assert indexes(answer) == list(range(8))
    assert answer["rejection"]["rejected"] == 0
    assert (await post(client, timeout=0.2, target_quantile=0.99))["stopping"]["reason"] == "cap"
    assert engines.running == 0


async def test_metrics_say_what_was_saved(client: httpx.AsyncClient, engines: SteppedEngines) -> None:
    answer = await post(client)
    text = (await client.get("/metrics")).text
    assert 'infalign_rejected_candidates_total{procedure="best-of-n"} 4.0' in text
    mean = sum(candidate["completion_tokens"] for candidate in answer["candidates"]) / 4
    saved = 4 * mean - answer["rejection"]["tokens"]
    assert await metric(client, 'infalign_saved_tokens_total{by="rejection"}') == max(saved, 0)
    assert await metric(client, "infalign_candidate_tokens_total") == answer["usage"]["completion_tokens"]
    assert await metric(client, "infalign_candidates_total") == 4
    assert await metric(client, "infalign_aborted_candidates_total") == 0
    assert await metric(client, "infalign_prefix_seconds_count") >= 6
    assert await metric(client, "infalign_quantile_drift_samples") == 0


@pytest.mark.parametrize(("rule", "by"), [({}, "rejection"), ({"target_quantile": 0.6}, "both")])
async def test_regret_draws_the_rejected_ones_to_the_end(
    engines: SteppedEngines, rule: dict[str, Any], by: str
) -> None:
    engines.texts = ("1119", "777777")
    async with serving(engines, regret_share=1) as client:
        answer = await post(client, n=4, **rule)
        assert answer["selected"][0]["text"] == "777777"
        while not await metric(client, "infalign_regret_count"):
            await asyncio.sleep(0)
        complete = {seed for seed in range(4) if engines.tokens[seed] == len(engines.texts[seed % 2])}
        assert complete == {0, 1, 2, 3}
        regret = 10 / 11 - answer["selected"][0]["quantile"]
        assert await metric(client, f'infalign_regret_sum{{by="{by}"}}') == pytest.approx(regret)


async def test_an_answer_in_which_nobody_was_rejected_has_no_regret(engines: SteppedEngines) -> None:
    engines.texts = ("9", "8")
    async with serving(engines, regret_share=1) as client:
        await post(client, n=2)
        while not await metric(client, "infalign_regret_count"):
            await asyncio.sleep(0)
        assert await metric(client, "infalign_regret_sum") == 0
        assert len(engines.drawn) == 2
