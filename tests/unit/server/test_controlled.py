"""Controlled decoding: each block is the best of K, blocks join as if they were drawn in one, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from infalign import Controlled, PrefixScorer, QuantileLaw
from server.app import ServedBundle, create_app
from server.decoding.blocks import block_seed
from server.decoding.rank_laws import predict_ranks
from server.decoding.reader import Conversation
from server.engines import Completion, EnginesDown, RequestFailed, Sampling
from server.errors import BadRequest
from server.protocol.requests import ControlledRequest
from server.routes.blocks import check_controlled
from server.settings import Settings
from tests.asgi import request
from tests.fakes import KNOWN, SCORER, STRONG, ByteTokenizer, FakeEngines, WritingEngines, fake_served
from tests.keys import bearer, keys_file
from tests.streams import events
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]
PROMPT = f"[user]{KNOWN}.[assistant]"
CONTROLLED, CHAT, TEXT = "/v1/controlled", "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def engines() -> FakeEngines:
    return WritingEngines()


@pytest.fixture
def served() -> ServedBundle:
    return fake_served(scorer=SCORER)


@asynccontextmanager
async def serving(
    engines: FakeEngines, served: ServedBundle | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(**settings), engines, served or fake_served(scorer=SCORER))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


async def draw(seed: int, tokens: int) -> Completion:
    """A continuation without a full stop."""
    engines = WritingEngines("0123456789")
    await engines.start()
    return await engines.generate([1], Sampling(1.0, 1.0, 0, tokens, seed, "fake"))


async def oracle(procedure: Controlled, seed: int, max_tokens: int = 8) -> str:
    """What blockwise best-of-K writes to the known question, with every continuation drawn and read one by one."""
    engines, read = WritingEngines(), PrefixScorer(np.array(SCORER.edges))
    await engines.start()
    text, block = "", 0
    while len(text) < max_tokens and not text.endswith("."):
        values, options = [], []
        for k in range(procedure.k):
            size = min(procedure.block, max_tokens - len(text))
            law = Sampling(1.0, 1.0, 0, size, block_seed(seed, block, k), "fake")
            drawn = await engines.generate(list(map(ord, PROMPT + text)), law)
            option = text + drawn.text + "." * (drawn.finish_reason == "stop")
            options.append(option)
            if option.endswith(".") or len(option) == max_tokens:
                [reward] = await engines.score([list(map(ord, option))])
                values.append((reward + 1) / 11)  # among the calibration's rewards, 0 to 9
            else:
                law_of_reference = read.quantile_law(await engines.score_prefix(list(map(ord, option))))
                tilted = law_of_reference.tilt(QuantileLaw.of_ranks(predict_ranks(STRONG, 10), 10))
                values.append(float(QuantileLaw([tilted.probabilities] * procedure.k).expected_best()))
        text, block = options[int(np.argmax(values))], block + 1
    return text.rstrip(".")


@pytest.mark.parametrize("form", ["controlled-4x2", "controlled-3x1", "controlled-2x3", "controlled-5x100"])
async def test_each_block_is_the_best_of_k(client: httpx.AsyncClient, form: str) -> None:
    k, block = map(int, form.removeprefix("controlled-").split("x"))
    for seed in range(8):
        answer = (await client.post(CONTROLLED, json={"messages": ASKED, "k": k, "block": block, "seed": seed})).json()
        assert answer["procedure"] == form
        assert answer["selected"][0]["text"] == await oracle(Controlled(k, block), seed)


async def test_answers_above_all_anchors_are_compared_by_reward() -> None:
    async with serving(WritingEngines("0123456789"), fake_served(anchors=(0, 1, 2), scorer=SCORER)) as client:
        for seed in range(5):
            body = {"messages": ASKED, "k": 8, "block": 8, "seed": seed}
            [selected] = (await client.post(CONTROLLED, json=body)).json()["selected"]
            drawn = [(await draw(block_seed(seed, 0, k), 8)).text for k in range(8)]
            assert selected["text"] == max(drawn, key=lambda text: int(text[-1]))


async def test_the_answer_says_what_was_drawn(client: httpx.AsyncClient, engines: WritingEngines) -> None:
    body = {"messages": ASKED, "k": 4, "block": 2, "seed": 3, "max_tokens": 7}
    answer = (await client.post(CONTROLLED, json=body)).json()
    [selected] = answer["selected"]
    control = answer["controlled"]
    assert engines.blocks == 4 * control["blocks"]
    assert control["blocks"] == -(-selected["completion_tokens"] // 2)
    assert control["drawn_tokens"] == answer["usage"]["completion_tokens"]
    assert control["discarded_tokens"] == control["drawn_tokens"] - selected["completion_tokens"] > 0
    assert control["kl_bound"] == pytest.approx(control["blocks"] * (np.log(4) - 3 / 4))
    assert selected["seed"] == 3
    assert answer["calibration"] == {"scope": "prompt", "samples": 10}
    assert selected["quantile"] == pytest.approx((selected["reward"] + 1) / 11)
    assert selected["quantile_low"] < selected["quantile"] < selected["quantile_high"]
    assert [len(prefix) - len(PROMPT) for prefix in engines.prefixes[:4]] == [2] * 4


async def test_a_seed_determines_the_answer_and_answers_have_their_own(client: httpx.AsyncClient) -> None:
    body = {"messages": ASKED, "k": 2, "block": 2, "n": 3, "seed": 5}
    first, again = [(await client.post(CONTROLLED, json=body)).json()["selected"] for _ in range(2)]
    alone = (await client.post(CONTROLLED, json=body | {"n": 1, "seed": 7})).json()["selected"]
    assert first == again
    assert [one["seed"] for one in first] == [5, 6, 7]
    assert [one["index"] for one in first] == [0, 1, 2]  # they are not ranked
    assert first[2]["text"] == alone[0]["text"]
    assert len({one["text"] for one in first}) > 1


async def test_the_model_name_is_enough_for_openais_clients(client: httpx.AsyncClient) -> None:
    own = (await client.post(CONTROLLED, json={"messages": ASKED, "k": 3, "block": 2, "seed": 1})).json()
    body = {"messages": ASKED, "model": "fake:controlled-3x2", "seed": 1}
    chat = (await client.post(CHAT, json=body)).json()
    assert chat["choices"][0]["message"]["content"] == own["selected"][0]["text"]
    assert chat["procedure"] == "controlled-3x2"
    for shared in ("controlled", "usage", "calibration"):
        assert chat[shared] == own[shared]
    named = (await client.post(CONTROLLED, json={"messages": ASKED, "model": "fake:controlled-3x2", "seed": 1})).json()
    assert named["selected"] == own["selected"]
    usual = (await client.post(CONTROLLED, json={"messages": ASKED})).json()
    assert usual["procedure"] == "controlled-4x4"  # four checkpoints of the scorer
    text = (await client.post(TEXT, json={"prompt": PROMPT, "model": "fake:controlled-3x2", "seed": 1, "n": 2})).json()
    assert text["choices"][0]["text"] == own["selected"][0]["text"]
    assert [choice["index"] for choice in text["choices"]] == [0, 1]
    names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert "fake:controlled-4x4" in names
    assert (await client.get("/v1/models/fake:controlled-9x9")).status_code == 200
    assert (await client.get("/v1/models/fake:controlled-99x9")).status_code == 404  # above max_n


@pytest.mark.parametrize("stop", [None, ["77", "123"]])
async def test_text_is_streamed_as_soon_as_its_block_is_selected(
    client: httpx.AsyncClient, stop: list[str] | None
) -> None:
    for seed in range(6):
        body = {"messages": ASKED, "model": "fake:controlled-3x2", "seed": seed, "stop": stop, "n": 2}
        whole = (await client.post(CHAT, json=body)).json()
        parts = list(events((await client.post(CHAT, json=body | {"stream": True})).text))
        texts, ends = {0: "", 1: ""}, {}
        for _, part in parts:
            choice = part["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content", "")
            if choice["finish_reason"]:
                ends[choice["index"]] = choice
        assert [texts[0], texts[1]] == [choice["message"]["content"] for choice in whole["choices"]]
        assert [ends[i]["reward"] for i in (0, 1)] == [choice["reward"] for choice in whole["choices"]]
        assert parts[-1][1]["controlled"] == whole["controlled"]
    body = {"messages": ASKED, "k": 2, "block": 2, "seed": 1, "max_tokens": 5}
    *told, (name, answer) = events((await client.post(CONTROLLED, json=body | {"stream": True})).text)
    assert name == "answer"
    assert {name for name, _ in told} == {"text"}
    assert "".join(data["text"] for _, data in told) == answer["selected"][0]["text"]
    assert len(told) == answer["controlled"]["blocks"]


async def test_the_first_text_comes_after_one_block(engines: WritingEngines) -> None:
    app = create_app(Settings(), engines, fake_served(scorer=SCORER))
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        engines.slow = {block_seed(5, 1, k) for k in range(2)}  # the second block never ends
        body = {"messages": ASKED, "k": 2, "block": 2, "seed": 5, "stream": True, "max_tokens": 8, "min_tokens": 8}
        left = request(CONTROLLED, body)
        streaming = asyncio.create_task(left.through(app))
        await left.answering.wait()
        [(name, told)] = events(left.body.decode())
        assert (name, len(told["text"])) == ("text", 2)
        while engines.running < 2:
            await asyncio.sleep(0)
        left.hung_up.set()
        await streaming
        for _ in range(10):
            await asyncio.sleep(0)
        assert engines.running == 0


async def test_a_client_that_leaves_frees_all_continuations(app: Any, engines: WritingEngines) -> None:
    engines.hang = True
    left = request(CONTROLLED, {"messages": ASKED, "k": 4, "n": 2})
    answering = asyncio.create_task(left.through(app))
    while engines.running < 8:
        await asyncio.sleep(0)
    left.hung_up.set()
    await answering
    assert engines.running == 0
    assert left.status == 499


async def test_an_engine_that_dies_between_blocks_leaves_no_half_answer(
    client: httpx.AsyncClient, engines: WritingEngines
) -> None:
    body = {"messages": ASKED, "k": 2, "block": 2, "seed": 5, "min_tokens": 8}
    engines.die_after = 2
    whole = await client.post(CONTROLLED, json=body)
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "not_ready")
    await engines.start()
    engines.die_after = engines.blocks + 2
    *told, (name, last) = events((await client.post(CONTROLLED, json=body | {"stream": True})).text)
    assert [name for name, _ in told] == ["text"]
    assert (name, last["error"]["code"]) == ("error", "not_ready")
    assert engines.running == 0


@pytest.mark.parametrize(
    ("fault", "status"), [(RequestFailed("gave nan"), 502), (EnginesDown("the prefix scorer has died"), 503)]
)
async def test_what_the_scorer_cannot_read_fails_the_request(
    client: httpx.AsyncClient, engines: WritingEngines, fault: Exception, status: int
) -> None:
    engines.prefix_fault = fault
    answer = await client.post(CONTROLLED, json={"messages": ASKED, "block": 2, "min_tokens": 8})
    assert answer.status_code == status
    assert engines.running == 0


async def test_a_scorer_that_gives_no_number_fails_the_request(
    client: httpx.AsyncClient, engines: WritingEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def give_nan(tokens: list[int]) -> list[float]:
        return [float("nan")] * 20

    monkeypatch.setattr(engines, "score_prefix", give_nan)
    answer = await client.post(CONTROLLED, json={"messages": ASKED, "block": 2, "min_tokens": 8})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")


async def test_tokens_that_an_engine_does_not_tell_fail_the_request(
    client: httpx.AsyncClient, engines: WritingEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = engines.generate

    async def tell_nothing(prompt: list[int], sampling: Sampling, listen: Any = None) -> Any:
        return await generate(prompt, sampling)

    monkeypatch.setattr(engines, "generate", tell_nothing)
    assert (await client.post(CONTROLLED, json={"messages": ASKED})).status_code == 502


async def test_time_that_runs_out_ends_all_continuations(client: httpx.AsyncClient, engines: WritingEngines) -> None:
    engines.slow = {block_seed(5, 1, 0)}
    body = {"messages": ASKED, "k": 2, "block": 2, "seed": 5, "min_tokens": 8, "timeout": 0.1}
    answer = await client.post(CONTROLLED, json=body)
    assert answer.status_code == 504
    assert engines.running == 0
    body |= {"n": 2, "min_candidates": 1}
    partial = (await client.post(CONTROLLED, json=body)).json()
    assert [one["index"] for one in partial["selected"]] == [1]
    assert partial["missing"] == {"asked": 2, "reasons": {"deadline_exceeded": 1}}
    assert partial["usage"]["completion_tokens"] > partial["controlled"]["blocks"] * 4 - 4


async def test_a_prompt_that_is_not_calibrated_has_the_scorers_quantiles(
    client: httpx.AsyncClient, engines: WritingEngines
) -> None:
    answer = (await client.post(CONTROLLED, json={"prompt": "else", "block": 100, "seed": 2})).json()
    assert answer["calibration"]["scope"] == "global"
    assert engines.prefixes == ["else"] * 4  # each of four finished answers is located by the prompt's predicted law
    texts = [(await engines.generate([1], Sampling(1, 1, 0, 8, block_seed(2, 0, k), "fake"))).text for k in range(4)]
    assert answer["selected"][0]["text"] == max(texts, key=lambda text: int(text[-1:] or -1))


async def test_blocks_join_as_if_they_were_one_text() -> None:
    served = fake_served(scorer=SCORER, tokenizer=ByteTokenizer())
    async with serving(WritingEngines("éé1"), served) as client:
        for seed in range(10):
            body = {"messages": ASKED, "k": 2, "block": 3, "seed": seed, "max_tokens": 11, "logprobs": 0}
            answer = (await client.post(CONTROLLED, json=body)).json()
            [selected] = answer["selected"]
            tokens = bytes(ord(entry["token"]) for entry in selected["logprobs"])
            assert selected["text"] == tokens.decode(errors="ignore")  # its last character may lack a byte
            assert len(tokens) == selected["completion_tokens"] == 11
            assert selected["finish_reason"] == "length"
            streamed = events((await client.post(CONTROLLED, json=body | {"stream": True})).text)
            assert "".join(data["text"] for name, data in streamed if name == "text") == selected["text"]


async def test_a_stop_string_may_span_blocks(client: httpx.AsyncClient) -> None:
    spanning = 0
    for seed in range(12):
        body = {"messages": ASKED, "k": 2, "block": 2, "seed": seed, "min_tokens": 8, "logprobs": 0}
        free = (await client.post(CONTROLLED, json=body)).json()["selected"][0]
        stop = free["text"][3:5]  # in the second block and the third
        answer = (await client.post(CONTROLLED, json=body | {"stop": stop, "min_tokens": 4})).json()
        [selected] = answer["selected"]
        assert stop not in selected["text"]
        assert len(selected["logprobs"]) == selected["completion_tokens"]
        if selected["finish_reason"] == "stop" and selected["text"] == free["text"][:3]:
            assert selected["completion_tokens"] == 5
            spanning += 1
    assert spanning


async def test_tokens_are_counted_over_blocks(client: httpx.AsyncClient, engines: WritingEngines) -> None:
    body = {"messages": ASKED, "k": 2, "block": 3, "min_tokens": 7, "max_tokens": 8, "seed": 1}
    [selected] = (await client.post(CONTROLLED, json=body)).json()["selected"]
    assert [(law.max_tokens, law.min_tokens) for law in engines.drawn[::2]] == [(3, 3), (3, 3), (2, 1)]
    assert selected["completion_tokens"] in (7, 8)
    assert all(law.stop == () for law in engines.drawn)


async def test_greedy_continuations_are_drawn_once(client: httpx.AsyncClient, engines: WritingEngines) -> None:
    body = {"messages": ASKED, "k": 4, "block": 3, "temperature": 0}
    answer = (await client.post(CONTROLLED, json=body)).json()
    assert engines.blocks == 3
    assert engines.prefixes == []
    assert answer["greedy"] is True
    assert answer["controlled"]["kl_bound"] == 0
    assert answer["controlled"]["discarded_tokens"] == 0


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CONTROLLED, {"presence_penalty": 1}, "presence_penalty"),
    (CONTROLLED, {"frequency_penalty": -1}, "frequency_penalty"),
    (CONTROLLED, {"response_format": {"type": "json_object"}}, "response_format"),
    (CONTROLLED, {"k": 17}, "k"),
    (CONTROLLED, {"k": 0}, "k"),
    (CONTROLLED, {"block": 0}, "block"),
    (CONTROLLED, {"k": 4, "n": 5}, "n"),
    (CONTROLLED, {"target_quantile": 0.9}, "target_quantile"),
    (CONTROLLED, {"best_of": 4}, "best_of"),
    (CONTROLLED, {"model": "fake:best-of-4"}, "model"),
    (CONTROLLED, {"model": "fake:controlled-2x2", "k": 3}, "model"),
    (CONTROLLED, {"min_candidates": 2}, "min_candidates"),
    (CHAT, {"model": "fake:controlled-4x4", "best_of": 4}, "model"),
    (CHAT, {"model": "fake:controlled-4x4", "target_quantile": 0.9}, "target_quantile"),
    (CHAT, {"model": "fake:controlled-17x4"}, "model"),
    (CHAT, {"model": "fake:controlled-4x4", "n": 5}, "n"),
    (CHAT, {"model": "fake:controlled-4x4", "frequency_penalty": 0.5}, "frequency_penalty"),
]


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED)
async def test_what_blocks_cannot_keep_to_is_refused_by_name(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str
) -> None:
    answer = await client.post(path, json={"messages": ASKED, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert "accepted: " in error["message"]


@pytest.mark.parametrize("form", ["controlled", "controlled-4", "controlled-4x0", "controlled-4x4@0.9"])
async def test_other_forms_are_no_models(client: httpx.AsyncClient, form: str) -> None:
    answer = await client.post(CHAT, json={"messages": ASKED, "model": f"fake:{form}"})
    assert answer.status_code == 404
    assert "controlled-KxM" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("conversation", "param"),
    [
        (Conversation(messages=({"role": "user", "content": "x"},), tools=({"type": "function"},)), "tools"),
        (Conversation(messages=({"role": "user", "content": "x"},)), "messages"),
        (Conversation(prompt="x"), None),
    ],
)
def test_tools_are_refused_and_messages_where_reasoning_is_separated(
    conversation: Conversation, param: str | None
) -> None:
    serving: Any = SimpleNamespace(settings=Settings(reasoning_parser="any"), check_n=lambda *_: None)
    with nullcontext() if param is None else pytest.raises(BadRequest) as refused:
        check_controlled(serving, ControlledRequest(prompt="x"), conversation, Controlled(4, 4), 1, "k")
    assert param is None or refused.value.param == param


async def test_a_bundle_without_a_prefix_scorer_says_so() -> None:
    async with serving(WritingEngines(), fake_served()) as client:
        for path, model in ((CONTROLLED, "fake"), (CHAT, "fake:controlled-4x4"), (TEXT, "auto:controlled-4x4")):
            prompt = {"prompt": "x"} if path == TEXT else {"messages": ASKED}
            answer = await client.post(path, json={"model": model, **prompt})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
            assert "best-of-N" in answer.json()["error"]["message"]
            assert "no prefix scorer" in answer.json()["error"]["message"]
        names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert not any("controlled" in name for name in names)


async def test_servers_elsewhere_have_no_prefix_scorer() -> None:
    served = replace(fake_served(scorer=SCORER), runs_scorer=False)
    async with serving(WritingEngines(), served) as client:
        answer = await client.post(CONTROLLED, json={"messages": ASKED})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_auto_answers_with_the_policy_for_best_of_k() -> None:
    served = replace(fake_served(scorer=SCORER), policies={"plain": "standard", "best": "best-of-4"})
    async with serving(WritingEngines(), served) as client:
        answer = (await client.post(CONTROLLED, json={"messages": ASKED})).json()
    assert answer["model"] == "best"


async def test_the_role_generate_is_enough(tmp_path: Path) -> None:
    async with serving(WritingEngines(), keys=keys_file(tmp_path)) as client:
        for path, fields in ((CONTROLLED, {}), (CHAT, {"model": "fake:controlled-4x4"})):
            body = {"messages": ASKED, **fields}
            assert (await client.post(path, json=body, headers=bearer("app"))).status_code == 200
            assert (await client.post(path, json=body, headers=bearer("prober"))).status_code == 403
            several = await client.post(path, json=body | {"n": 2}, headers=bearer("app"))
            assert (several.status_code, several.json()["error"]["param"]) == (403, "n")  # as of standard decoding


async def test_operators_see_what_was_controlled(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "infalign.access"):
        answer = (await client.post(CONTROLLED, json={"messages": ASKED, "block": 2, "n": 2})).json()
    assert caplog.records[-1].fields["procedure"] == "controlled-4x2"  # type: ignore[attr-defined]
    text = (await client.get("/metrics")).text
    drawn = float(answer["usage"]["completion_tokens"])
    assert 'infalign_candidates_total{procedure="controlled"} 2.0' in text
    assert f'infalign_candidate_tokens_total{{procedure="controlled"}} {drawn}' in text
    assert 'infalign_selected_quantile_count{procedure="controlled",scope="prompt"} 1.0' in text
    assert 'infalign_request_seconds_count{procedure="controlled"} 1.0' in text
    assert "infalign_quantile_drift_samples{" not in text


def test_a_seed_of_a_continuation_is_never_that_of_another() -> None:
    seeds = {block_seed(seed, block, option) for seed in range(20) for block in range(20) for option in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert block_seed(2**62, 10**6, 64) >= 0
