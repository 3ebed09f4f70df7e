"""Engines that live and fail: draws that do not end properly, numbers that are none, refusals, silence."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from infalign.errors import EngineFailed
from infalign.templates import Rendering, prompt_key
from server.engines import Completion, Delta, EnginesDown, Refused, RequestFailed, Sampling, Structure
from server.engines.base import compute_reward
from server.engines.outputs import read_final, read_outputs, read_stream
from server.engines.refusal import refusal
from server.engines.remote import RemoteEngines
from server.engines.watch import LOOKS, NoAnswer, Watch
from server.settings import Settings
from tests.fakes import FakeEngines
from tests.vllm_server import Fault, VllmServer, always, part, refusing, sse
from training.vllm_sampler import _tokens

pytestmark = pytest.mark.anyio
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=8, seed=3, policy="demo")
STRUCTURED = replace(SAMPLING, structure=Structure("json_schema", {"type": "string", "pattern": "^.{1,280}$"}))
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "pattern": "^.{1,28}$"}}}
ASKED = {"messages": [{"role": "user", "content": "hi"}], "seed": 0}
ENDPOINTS = {
    "best-of-n": ("/v1/best-of-n", ASKED | {"n": 4}),
    "worst-of-n": ("/v1/worst-of-n", ASKED | {"n": 4}),
    "chat": ("/v1/chat/completions", ASKED | {"best_of": 4}),
    "chat, standard": ("/v1/chat/completions", ASKED | {"n": 4}),
    "completions": ("/v1/completions", {"prompt": "hi", "seed": 0, "best_of": 4}),
}
BROKEN = RequestFailed("finish_reason 'error', not stop or length", internal=True)
SOON = 60  # seconds, a bound against hanging


# What the decoder makes of an engine's failures.


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("fault", "fields", "status", "code", "param"),
    [
        pytest.param(BROKEN, {}, 502, "engine_error", None, id="an internal error"),
        pytest.param(BROKEN, {"response_format": SCHEMA}, 400, "invalid_value", "response_format", id="a structure"),
        pytest.param(RequestFailed("NaN"), {"response_format": SCHEMA}, 502, "engine_error", None, id="other failure"),
        pytest.param(EnginesDown("dead"), {"response_format": SCHEMA}, 503, "not_ready", None, id="a dead engine"),
        pytest.param(Refused("no", "logit_bias"), {}, 400, "invalid_value", "logit_bias", id="a refusal"),
        pytest.param(Refused("no"), {}, 400, "invalid_value", None, id="a refusal of nothing known"),
    ],
)
async def test_a_failed_draw_fails_the_request(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    endpoint: str,
    fault: Exception,
    fields: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    engines.faults = {2: fault}
    url, body = ENDPOINTS[endpoint]
    answer = await client.post(url, json=body | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    if param:
        assert param in error["message"] or isinstance(fault, Refused)
    assert "infalign_candidates_total{" not in (await client.get("/metrics")).text
    engines.faults = {}
    assert (await client.post(url, json=body | fields)).status_code == 200


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_failed_draw_is_no_candidate(client: httpx.AsyncClient, engines: FakeEngines, endpoint: str) -> None:
    engines.faults = {3: BROKEN}  # which would have been the best
    url, body = ENDPOINTS[endpoint]
    answer = (await client.post(url, json=body | {"min_candidates": 3, "return_candidates": True})).json()
    assert [candidate["seed"] for candidate in answer["candidates"]] == [0, 1, 2]
    assert answer["missing"] == {"asked": 4, "reasons": {"engine_error": 1}}
    assert answer["usage"]["completion_tokens"] == 9
    metrics = (await client.get("/metrics")).text
    count = [line for line in metrics.splitlines() if line.startswith("infalign_candidate_quantile_count")]
    assert sum(float(line.split()[-1]) for line in count) == 3


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("enough", [True, False])
async def test_a_stream_has_no_event_of_a_failed_draw(
    client: httpx.AsyncClient, engines: FakeEngines, endpoint: str, enough: bool
) -> None:
    engines.faults = {3: BROKEN}
    url, body = ENDPOINTS[endpoint]
    fields = {"stream": True, "return_candidates": True} | ({"min_candidates": 3} if enough else {})
    text = (await client.post(url, json=body | fields)).text
    assert "answer 3" not in text
    assert '"index":3' not in text.replace(" ", "")
    assert ("engine_error" in text) == (not enough) or '"reasons":{"engine_error":1}' in text


async def test_a_failed_reference_draw_is_in_no_calibration(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    for url, body in (("/v1/calibrations", {"prompt": "x"}), ("/v1/best-of-n", {"prompt": "x", "calibrate": True})):
        engines.faults = {int(prompt_key(Rendering(("x",)))[:15], 16) + 5: BROKEN}
        failed = await client.post(url, json=body)
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "engine_error")
    engines.faults = {}
    assert (await client.post("/v1/calibrations", json={"prompt": "x"})).json()["cached"] is False


async def test_a_candidate_that_failed_by_a_mistake_of_ours_is_not_called_late(
    client: httpx.AsyncClient, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    engines.faults = {1: LookupError("a mistake")}
    answer = await client.post("/v1/best-of-n", json=ASKED | {"n": 2, "min_candidates": 1})
    assert answer.json()["missing"] == {"asked": 2, "reasons": {"internal_error": 1}}
    assert "unexpected error in a candidate: builtins.LookupError" in caplog.text


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (EnginesDown("it has died"), "an engine did not answer: it has died"),
        (BROKEN, "an engine failed at a candidate"),
    ],
)
async def test_a_failure_is_one_line_of_the_log_for_each_request(
    client: httpx.AsyncClient, engines: FakeEngines, caplog: pytest.LogCaptureFixture, fault: Exception, line: str
) -> None:
    engines.fault = fault
    body = ASKED | {"n": 12, "min_candidates": 1}
    with caplog.at_level(logging.WARNING, "infalign.server"):
        await asyncio.gather(*(client.post("/v1/best-of-n", json=body) for _ in range(3)))
    assert sum(line in record.getMessage() for record in caplog.records) == 3


# What vLLM in process says.


def output(text: str, reason: str | None, logprobs: Any = None, tokens: int = 1) -> Any:
    drawn = SimpleNamespace(text=text, token_ids=list(range(tokens)), finish_reason=reason, logprobs=logprobs)
    return SimpleNamespace(outputs=[drawn])


async def outputs(*them: Any) -> AsyncGenerator[Any, None]:
    for one in them:
        yield one


def at_place(*values: float) -> dict[int, Any]:
    """Log-probabilities of tokens 0, 1, ..., of which the first is drawn."""
    return {
        token: SimpleNamespace(decoded_token=f"t{token}", logprob=value, rank=token + 1)
        for token, value in enumerate(values)
    }


ENDS: dict[str | None, type[Exception] | None] = {
    "stop": None,
    "length": None,
    "error": RequestFailed,
    "repetition": RequestFailed,
    "whatever comes next": RequestFailed,
    None: RequestFailed,
    "abort": EnginesDown,
}


@pytest.mark.parametrize("reason", ENDS)
@pytest.mark.parametrize("streaming", [False, True])
async def test_only_stop_and_length_end_a_completion(reason: str | None, streaming: bool) -> None:
    told: list[Delta] = []

    async def drawn() -> Completion:
        if streaming:
            return await read_stream(
                outputs(output("a", None), output("b", reason)), SAMPLING, lambda: None, told.append
            )
        return await read_final(outputs(output("ab", reason, tokens=2)), SAMPLING, lambda: None)

    if expected := ENDS[reason]:
        with pytest.raises(expected, match="finish_reason"):
            await drawn()
    else:
        assert await drawn() == Completion("ab", 2, reason, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("values", [(-math.inf, -1.0), (-1.0, -math.inf), (-1e30, 0.0)])
async def test_no_infinite_logprob_leaves_the_engine(streaming: bool, values: tuple[float, float]) -> None:
    told: list[Delta] = []
    source = outputs(output("a", "stop", [at_place(*values)]))
    asked = replace(SAMPLING, logprobs=2)
    work = (
        read_stream(source, asked, lambda: None, told.append) if streaming else read_final(source, asked, lambda: None)
    )
    (token,) = (await work).logprobs or ()
    expected = [max(value, -9999.0) for value in values]
    assert [token.logprob, *(logprob for _, logprob in token.top)] == [expected[0], *expected]


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_a_logprob_that_is_no_number_fails_the_draw(value: float) -> None:
    source = outputs(output("a", "stop", [at_place(value)]))
    with pytest.raises(RequestFailed, match="log-probability of"):
        await read_final(source, replace(SAMPLING, logprobs=0), lambda: None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([math.nan], RequestFailed), ([math.inf], RequestFailed), ([-math.inf], RequestFailed), ([], EnginesDown)],
)
async def test_a_reward_that_is_no_number_is_none(values: list[float], expected: type[Exception]) -> None:
    data = SimpleNamespace(tolist=lambda: values)
    with pytest.raises(expected):
        compute_reward(
            await read_outputs(outputs(SimpleNamespace(outputs=SimpleNamespace(data=data))), lambda: None), ()
        )


@pytest.mark.parametrize("reason", ENDS)
def test_only_stop_and_length_end_a_rollout(reason: str | None) -> None:
    response = SimpleNamespace(token_ids=(1, 2), finish_reason=reason)
    if reason in ("stop", "length"):
        assert _tokens(response) == [1, 2]
    else:
        with pytest.raises(EngineFailed, match=f"ended a draw with {reason!r}"):
            _tokens(response)


# What vLLM says over HTTP.


@pytest.fixture
def policies() -> Iterator[list[VllmServer]]:
    """Two servers of the policy, whose faults leave trials alone."""
    with ExitStack() as stack:
        servers = [stack.enter_context(VllmServer("demo")) for _ in range(2)]
        for server in servers:
            server.spare_trials = True
        yield servers


@pytest.fixture
def judge() -> Iterator[VllmServer]:
    with VllmServer("rm") as server:
        server.spare_trials = True
        yield server


@pytest.fixture
async def remote(policies: list[VllmServer], judge: VllmServer) -> AsyncIterator[RemoteEngines]:
    settings = Settings(
        policy_urls=tuple(server.url for server in policies), reward_urls=(judge.url,), remote_timeout=600
    )
    engines = RemoteEngines(settings, ["demo"], {"reward": ()}, context=99, interval=60)
    await asyncio.wait_for(engines.start(), SOON)
    yield engines
    engines.stop()
    await asyncio.sleep(0)


def ending(reason: str | None, **choice: Any) -> Fault:
    usage = {"completion_tokens": 1}
    chunk = part("a", reason)
    chunk["choices"][0] |= choice
    return always(lambda: sse([chunk | {"usage": usage}]))


def logprobs(drawn: float | None, other: float | None) -> dict[str, Any]:
    return {"tokens": ["a"], "token_logprobs": [drawn], "top_logprobs": [{"a": drawn, "b": other}]}


FAILURES: dict[str, Fault] = {
    "an error in the stream": always(lambda: sse([{"error": {"message": "Internal server error", "code": 500}}])),
    "no chunk but the usage": always(lambda: sse([{"choices": [], "usage": {"completion_tokens": 0}}])),
    "status 500": refusing(500),
    "repetition": ending("repetition"),
    "whatever comes next": ending("whatever comes next"),
    "no number": ending("stop", logprobs=logprobs(None, -1.0)),
    "no number among the likeliest": ending("stop", logprobs=logprobs(-1.0, None)),
}


@pytest.mark.parametrize("fault", FAILURES)
async def test_a_server_that_fails_at_one_request_is_not_set_aside(
    remote: RemoteEngines, policies: list[VllmServer], fault: str
) -> None:
    for server in policies:
        server.fault = FAILURES[fault]
    with pytest.raises(RequestFailed):
        await remote.generate([5], replace(SAMPLING, logprobs=1 if "number" in fault else None))
    assert sum(len(server.asked) for server in policies) == 1  # the request may be the reason: no other is harmed
    await remote.check()
    for server in policies:
        server.fault = None
    drawn = [await remote.generate([5], SAMPLING) for _ in range(4)]
    assert [one.finish_reason for one in drawn] == ["stop"] * 4
    assert all(len(server.asked) >= 2 for server in policies)


async def test_a_draw_that_a_server_aborts_is_drawn_by_another(
    remote: RemoteEngines, policies: list[VllmServer]
) -> None:
    policies[0].fault = ending("abort")
    assert [(await remote.generate([5], SAMPLING)).finish_reason for _ in range(3)] == ["stop"] * 3


@pytest.mark.parametrize(("drawn", "other"), [(-9999.0, -1.0), (-1.0, -9999.0)])
async def test_the_least_logprob_of_a_server_is_passed_on(
    remote: RemoteEngines, policies: list[VllmServer], drawn: float, other: float
) -> None:
    for server in policies:
        server.fault = ending("stop", logprobs=logprobs(drawn, other))
    (token,) = (await remote.generate([5], replace(SAMPLING, logprobs=2))).logprobs or ()
    assert token.logprob == drawn
    assert dict(token.top) == {"a": drawn, "b": other}


@pytest.mark.parametrize("in_stream", [False, True])
async def test_a_refusal_names_the_field_that_the_server_names(
    remote: RemoteEngines, policies: list[VllmServer], in_stream: bool
) -> None:
    error = {"message": "token_id(s) [9] are out (parameter=logit_bias, value=[9])", "code": 400, "param": "logit_bias"}
    for server in policies:
        server.fault = always(lambda: sse([{"error": error}]) if in_stream else JSONResponse({"error": error}, 400))
    with pytest.raises(Refused, match=r"^logit_bias: token_id\(s\) \[9\] are out$") as refused:
        await remote.generate([5], SAMPLING)
    assert refused.value.field == "logit_bias"


async def test_a_score_that_a_server_refuses_is_not_the_clients_fault(remote: RemoteEngines, judge: VllmServer) -> None:
    judge.fault = refusing(400, "Out of range float values are not JSON compliant: nan")
    with pytest.raises(RequestFailed, match="not JSON compliant"):
        await remote.score([[9]])
    await remote.check()


@pytest.mark.parametrize(
    ("message", "parameter", "sampling", "field", "text"),
    [
        ("token_id(s) [9] in logit_bias (parameter=logit_bias, value=[9])", "logit_bias", SAMPLING, "logit_bias", None),
        ("Grammar error: a\n b", None, STRUCTURED, "response_format", "response_format: Grammar error: a b"),
        ("Grammar error", None, SAMPLING, None, "Grammar error"),
        ("min_tokens must be less", None, STRUCTURED, "min_tokens", "min_tokens must be less"),
        ("stop cannot contain an empty string.", None, SAMPLING, "stop", "stop cannot contain an empty string."),
        ("too long", "input_tokens", STRUCTURED, None, "too long"),
        ("x" * 9999, None, SAMPLING, None, "x" * 300),
    ],
)
def test_a_refusal_is_one_line_about_a_field_of_ours(
    message: str, parameter: str | None, sampling: Sampling, field: str | None, text: str | None
) -> None:
    error = refusal(message, parameter, sampling)
    assert error.field == field
    assert str(error) == (text or "logit_bias: token_id(s) [9] in logit_bias")


# Engines that say nothing.


@asynccontextmanager
async def waiting(watch: Watch) -> AsyncIterator["asyncio.Task[None]"]:
    """A call that is never answered."""

    async def call() -> None:
        async with watch.call():
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_silent_engine_fails_all_its_calls_and_counts_as_hung() -> None:
    watch = Watch(0.05)
    async with waiting(watch) as one, waiting(watch) as other:
        for call in (one, other):
            with pytest.raises(NoAnswer, match=r"said nothing for 0\.05 s"):
                await asyncio.wait_for(asyncio.shield(call), SOON)
    assert watch.is_hung
    assert watch.outstanding == 0
    watch.note_output()
    assert not watch.is_hung


async def test_an_engine_that_gives_signs_of_life_is_not_hung() -> None:
    signs = 0

    def ask() -> None:
        nonlocal signs
        signs += 1
        watch.note_output()

    watch = Watch(0.05, ask)
    async with waiting(watch) as call:
        while signs < 4 * LOOKS:
            await asyncio.sleep(0.01)
        assert not call.done()


async def test_an_idle_engine_is_left_alone() -> None:
    asked: list[None] = []
    watch = Watch(0.01, lambda: asked.append(None))
    async with watch.call():
        pass
    await asyncio.sleep(0.1)
    assert not asked
    assert not watch.is_hung


async def test_time_in_which_the_server_itself_stood_still_does_not_count() -> None:
    watch = Watch(0.4)
    async with waiting(watch) as call:
        for _ in range(3):
            time.sleep(0.5)  # noqa: ASYNC251
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not call.done()
        assert not watch.is_hung


async def test_stopping_an_engine_ends_its_calls() -> None:
    watch = Watch(SOON)
    async with waiting(watch) as call:
        await asyncio.to_thread(watch.stop)
        with pytest.raises(NoAnswer, match="was stopped"):
            await asyncio.wait_for(asyncio.shield(call), SOON)
    assert not watch.is_hung


async def test_a_timeout_within_a_call_is_not_the_engines() -> None:
    watch = Watch(SOON)
    with pytest.raises(TimeoutError):
        async with watch.call():
            raise TimeoutError
