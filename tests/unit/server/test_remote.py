"""Remote engines over real HTTP, against stand-ins for vLLM servers."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from infalign.errors import InvalidValue
from server.engines import Delta, EnginesDown, NextToken, Refused, RequestFailed, Sampling, Structure, TokenLogprob
from server.engines.remote import RemoteEngines
from server.options import parse_settings
from server.settings import Settings
from tests.vllm_server import Fault, VllmServer, always, hanging, part, refusing, sse

pytestmark = pytest.mark.anyio
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=8, seed=3, policy="demo")
PROMPT = [5, 6, 7]
USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}
SCORER_OUTPUTS = 4
SOON = 600  # seconds, a bound against hanging


@pytest.fixture
def serve() -> Iterator[Callable[..., VllmServer]]:
    with ExitStack() as stack:
        yield lambda *models, **options: stack.enter_context(VllmServer(*models, **options))


@asynccontextmanager
async def engines_on(
    policies: Sequence[VllmServer],
    rewards: Sequence[VllmServer],
    references: Sequence[VllmServer] = (),
    scorers: Sequence[VllmServer] = (),
    names: Sequence[str] = ("demo",),
    silence: float = SOON,
    interval: float = 0.1,
) -> AsyncIterator[RemoteEngines]:
    engines = RemoteEngines(
        Settings(
            policy_urls=tuple(server.url for server in policies),
            reward_urls=tuple(server.url for server in rewards),
            reference_urls=tuple(server.url for server in references),
            scorer_urls=tuple(server.url for server in scorers),
            remote_timeout=silence,
        ),
        names,
        {"reward": ()},
        context=999,
        interval=interval,
        scorer_outputs=SCORER_OUTPUTS,
    )
    await asyncio.wait_for(engines.start(), SOON)
    try:
        yield engines
    finally:
        engines.stop()
        await asyncio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.01)


async def lack(engines: RemoteEngines) -> str:
    """What the engines say they lack."""
    try:
        await engines.check()
    except EnginesDown as error:
        return str(error)
    return ""


async def is_up(engines: RemoteEngines) -> bool:
    return not await lack(engines)


async def test_a_candidate_is_drawn_and_scored(serve: Callable[..., VllmServer]) -> None:
    policy, reward = serve("anything", max_model_len=100), serve("rm", max_model_len=120)
    async with engines_on([policy], [reward]) as engines:
        assert engines.context == 100
        drawn = await engines.generate(PROMPT, SAMPLING)
        assert (drawn.text, drawn.tokens, drawn.finish_reason, drawn.logprobs) == ("answer of 3", 3, "stop", None)
        assert await engines.score([[1, 2, 7]]) == [3.5]
    assert policy.asked[0]["model"] == "anything"
    assert policy.asked[0]["prompt"] == PROMPT
    assert reward.asked == [{"model": "rm", "input": [1, 2, 7], "use_activation": False}]


async def test_the_last_token_of_a_reward_models_context_is_not_used(serve: Callable[..., VllmServer]) -> None:
    async with engines_on([serve("demo", max_model_len=120)], [serve("rm", max_model_len=100)]) as engines:
        assert engines.context == 99


async def test_the_whole_sampling_is_said(serve: Callable[..., VllmServer]) -> None:
    policy, reward = serve("demo"), serve("rm")
    schema = {"type": "object"}
    async with engines_on([policy], [reward]) as engines:
        await engines.generate(PROMPT, SAMPLING)
        await engines.generate(
            PROMPT,
            replace(
                SAMPLING,
                min_p=0.1,
                min_tokens=2,
                stop=("x", "y"),
                presence_penalty=0.2,
                frequency_penalty=0.3,
                repetition_penalty=1.1,
                logit_bias=((4, -1.5), (9, 2.0)),
                structure=Structure("json_schema", schema),
            ),
            lambda _: None,
        )
        await engines.generate(PROMPT, replace(SAMPLING, structure=Structure("json_object")))
    plain, full, any_json = policy.asked
    assert plain == {
        "model": "demo",
        "prompt": PROMPT,
        "n": 1,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "max_tokens": 8,
        "min_tokens": 0,
        "seed": 3,
        "stop": [],
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stream_interval": 16,
        "return_token_ids": False,
        "skip_special_tokens": True,
    }
    assert full == plain | {
        "min_p": 0.1,
        "min_tokens": 2,
        "stop": ["x", "y"],
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "logit_bias": {"4": -1.5, "9": 2.0},
        "stream_interval": 1,
        "return_token_ids": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "response", "schema": schema}},
    }
    assert any_json == plain | {"response_format": {"type": "json_object"}}


async def test_the_text_is_told_as_it_grows(serve: Callable[..., VllmServer]) -> None:
    async with engines_on([serve("demo")], [serve("rm")]) as engines:
        told: list[Delta] = []
        drawn = await engines.generate(PROMPT, SAMPLING, told.append)
    assert [delta.text for delta in told] == ["answer", " of", " 3"]
    assert drawn.text == "answer of 3"


async def test_tokens_are_told_even_where_they_have_no_text(serve: Callable[..., VllmServer]) -> None:
    policy, told = serve("demo"), list[Delta]()
    chunks = [part("", None), part("ab", "stop") | {"usage": {"completion_tokens": 2}}]
    for token, chunk in enumerate(chunks):
        chunk["choices"][0]["token_ids"] = [token]
    async with engines_on([policy], [serve("rm")]) as engines:
        policy.fault = always(lambda: sse(chunks))
        await engines.generate(PROMPT, SAMPLING, told.append)
    assert [(delta.text, delta.token_ids) for delta in told] == [("", (0,)), ("ab", (1,))]


async def test_line_separators_in_a_text_do_not_break_it(serve: Callable[..., VllmServer]) -> None:
    policy, text = serve("demo"), "a\u2028b\u0085c\r\nd"

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield part(text, "length") | {"usage": {"completion_tokens": 5}}

    async with engines_on([policy], [serve("rm")]) as engines:
        policy.fault = always(lambda: sse(chunks()))
        drawn = await engines.generate(PROMPT, SAMPLING)
    assert (drawn.text, drawn.finish_reason) == (text, "length")


@pytest.mark.parametrize(("asked", "top"), [(0, ()), (1, (("a", -0.5),)), (2, (("a", -0.5), ("b", -1.5)))])
async def test_logprobs_are_the_drawn_token_and_the_likeliest(
    serve: Callable[..., VllmServer], asked: int, top: tuple[tuple[str, float], ...]
) -> None:
    told: list[Delta] = []
    async with engines_on([serve("demo")], [serve("rm")]) as engines:
        drawn = await engines.generate(PROMPT, replace(SAMPLING, logprobs=asked), told.append)
    words = ("answer", " of", " 3")
    assert drawn.logprobs == tuple(TokenLogprob(word, -3.0, top) for word in words)
    assert [delta.logprobs for delta in told] == [(logprob,) for logprob in drawn.logprobs]


async def test_adapters_and_their_base_are_asked_by_name(serve: Callable[..., VllmServer]) -> None:
    policy = serve("base", "best", "worst")
    async with engines_on([policy], [serve("rm")], names=["best", "worst"]) as engines:
        for name in ("worst", "best", None):
            await engines.generate(PROMPT, replace(SAMPLING, policy=name))
        with pytest.raises(EnginesDown, match=r"serves base, best, worst, none of them it"):
            await engines.generate(PROMPT, replace(SAMPLING, policy="other"))
    assert [body["model"] for body in policy.asked] == ["worst", "best", "base"]


async def test_the_base_does_not_stand_in_for_an_adapter_that_is_not_loaded(serve: Callable[..., VllmServer]) -> None:
    forgetful, reward = serve("base"), serve("rm")
    settings = Settings(policy_urls=(forgetful.url,), reward_urls=(reward.url,))
    engines = RemoteEngines(settings, ["best"], {"reward": ()}, 99, adapters=True, interval=0.1)
    starting = asyncio.create_task(engines.start())
    await asyncio.sleep(0.5)
    assert not starting.done()
    assert not await is_up(engines)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert not forgetful.asked


async def test_a_policy_is_drawn_where_it_is_served(serve: Callable[..., VllmServer]) -> None:
    one, other = serve("base", "best"), serve("base", "worst")
    async with engines_on([one, other], [serve("rm")], names=["best", "worst"]) as engines:
        for name in ("best", "worst", "worst"):
            await engines.generate(PROMPT, replace(SAMPLING, policy=name))
        other.stop()
        await engines.generate(PROMPT, replace(SAMPLING, policy="best"))
        with pytest.raises(EnginesDown, match="serves base, best, none of them it"):
            await engines.generate(PROMPT, replace(SAMPLING, policy="worst"))
    assert [body["model"] for body in one.asked] == ["best", "best"]
    assert [body["model"] for body in other.asked] == ["worst", "worst"]


async def test_the_reference_has_servers_of_its_own_or_is_missed(serve: Callable[..., VllmServer]) -> None:
    policy, reward, reference = serve("demo"), serve("rm"), serve("sft")
    async with engines_on([policy], [reward], [reference]) as engines:
        await engines.generate(PROMPT, replace(SAMPLING, policy=None))
    assert [body["model"] for body in reference.asked] == ["sft"]
    async with engines_on([policy], [reward]) as engines:
        with pytest.raises(EnginesDown, match="no server has the reference: give --reference-urls"):
            await engines.generate(PROMPT, replace(SAMPLING, policy=None))


async def test_the_prefix_scorer_has_servers_of_its_own_or_is_missed(serve: Callable[..., VllmServer]) -> None:
    policy, reward, scorer, other = serve("demo"), serve("rm"), serve("ps", max_model_len=51), serve("a reward model")
    scorer.outputs = SCORER_OUTPUTS
    async with engines_on([policy], [reward], scorers=[other, scorer]) as engines:
        assert engines.context == 50
        assert [await engines.score_prefix([1, 8]) for _ in range(2)] == [[4.0, 5.0, 6.0, 7.0]] * 2
        assert scorer.asked == [{"model": "ps", "input": [1, 8], "use_activation": False}] * 2
        assert other.asked == [], "it has one output, so its trial has failed"
        scorer.stop()
        await until(lambda: scorer.url in str(engines._outages(engines._get_roles())))
        with pytest.raises(EnginesDown, match=r"prefix scorer: .* 1 outputs of a prefix scorer that has 4"):
            await engines.score_prefix([1, 8])
        assert not await is_up(engines)
    async with engines_on([policy], [reward]) as engines:
        with pytest.raises(EnginesDown, match="no server has the prefix scorer: give --scorer-urls"):
            await engines.score_prefix([1, 8])


@pytest.mark.parametrize("in_stream", [False, True])
async def test_what_a_server_does_not_accept_is_refused_and_not_tried_elsewhere(
    serve: Callable[..., VllmServer], in_stream: bool
) -> None:
    one, other, reward = serve("demo"), serve("demo"), serve("rm")
    message = "logit_bias: no such token"
    error = {"error": {"message": message, "code": 400}}
    async with engines_on([one, other], [reward]) as engines:
        one.fault = other.fault = always(lambda: sse([error])) if in_stream else refusing(400, message)
        with pytest.raises(Refused, match=r"^logit_bias: no such token$"):
            await engines.generate(PROMPT, SAMPLING)
        assert len(one.asked + other.asked) == 1
        await engines.check()


GARBLED: dict[str, Fault] = {
    "status 500": refusing(500),
    "status 503": refusing(503),
    "status 404": refusing(404),
    "a redirect": always(lambda: Response(status_code=307, headers={"location": "/"})),
    "no event stream": always(lambda: HTMLResponse("<p>hello")),
    "no JSON": always(lambda: sse([], end="{oops")),
    "an error in the stream": always(lambda: sse([{"error": {"message": "engine dead", "code": 500}}])),
    "no text": always(lambda: sse([{"choices": [{"index": 0}]}])),
    "a number for a text": always(lambda: sse([part(7)])),
    "no end": always(lambda: sse([part("a", "stop") | {"usage": {"completion_tokens": 1}}], end="")),
    "no usage": always(lambda: sse([part("a", "stop")])),
    "no finish reason": always(lambda: sse([part("a") | {"usage": {"completion_tokens": 1}}])),
    "aborted": always(lambda: sse([part("a", "abort") | {"usage": {"completion_tokens": 1}}])),
    "no logprobs": always(lambda: sse([part("a", "stop") | {"usage": {"completion_tokens": 1}}])),
    "logprobs of NaN": always(
        lambda: sse([{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [float("nan")]}}]}])
    ),
    "logprobs of other lengths": always(
        lambda: sse(
            [{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [], "top_logprobs": []}}]}]
        )
    ),
}


@pytest.mark.parametrize("fault", GARBLED)
async def test_another_server_answers_in_place_of_one_that_talks_nonsense(
    serve: Callable[..., VllmServer], fault: str
) -> None:
    one, other = serve("demo"), serve("demo")
    async with engines_on([one, other], [serve("rm")], interval=60) as engines:
        one.fault = GARBLED[fault]
        drawn = [await engines.generate(PROMPT, replace(SAMPLING, seed=seed, logprobs=1)) for seed in range(4)]
        assert [one_drawn.text for one_drawn in drawn] == [f"answer of {seed}" for seed in range(4)]
        assert len(other.asked) == 4
        trial_passes = fault == "no logprobs"  # which a trial does not ask for
        assert len(one.asked) == 1 or trial_passes
        await engines.check()
        other.fault = one.fault
        with pytest.raises(EnginesDown, match=f"policy: {one.url}: .*; {other.url}: "):
            await engines.generate(PROMPT, replace(SAMPLING, logprobs=1))
        assert trial_passes or not await is_up(engines)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"data": []}',
        b'{"data": [{"label": "x"}]}',
        b'{"data": [{"probs": []}]}',
        b'{"data": [{"probs": [1.0, 2.0]}]}',
        b'{"data": [{"probs": ["1.0"]}]}',
        b'{"data": [{"probs": [null]}]}',
        b'{"data": [{"probs": [NaN]}]}',
        b'{"data": [{"probs": [1e999]}]}',
        b'{"data": [{"probs": [1.0]}, {"probs": [1.0]}]}',
    ],
)
async def test_a_score_is_one_finite_number_or_comes_from_another_server(
    serve: Callable[..., VllmServer], body: bytes
) -> None:
    one, other = serve("rm"), serve("rm")
    async with engines_on([serve("demo")], [one, other], interval=60) as engines:
        one.fault = always(lambda: Response(body, media_type="application/json"))
        assert [await engines.score([[9]]) for _ in range(3)] == [[4.5]] * 3
        assert (len(one.asked), len(other.asked)) == (1, 3)
        other.fault = one.fault
        with pytest.raises(EnginesDown, match=r"reward model reward: .*(not vLLM's|outputs of a reward model)"):
            await engines.score([[9]])


async def test_a_hung_server_is_given_up(serve: Callable[..., VllmServer]) -> None:
    one, other, reward = serve("demo"), serve("demo"), serve("rm")
    async with engines_on([one, other], [reward], silence=4) as engines:
        one.fault = hanging
        assert (await engines.generate(PROMPT, SAMPLING)).text == "answer of 3"
        await until(lambda: one.trials > 1)  # healthy as it says it is, it has to do a trial
        assert (await engines.generate(PROMPT, SAMPLING)).text == "answer of 3"
        assert len(one.asked) == 1
        other.fault = reward.fault = hanging
        with pytest.raises(EnginesDown, match=r"said nothing for 4 s"):
            await engines.generate(PROMPT, SAMPLING)
        with pytest.raises(EnginesDown, match=r"said nothing for 4 s"):
            await engines.score([[9]])
        await until(lambda: one.running + other.running + reward.running <= 3)  # trials


async def test_a_call_that_waits_in_a_queue_is_not_given_up_while_others_are_answered(
    serve: Callable[..., VllmServer],
) -> None:
    policy = serve("demo")
    async with engines_on([policy], [serve("rm")], silence=4) as engines:
        policy.fault = hanging
        waiting = asyncio.create_task(engines.generate(PROMPT, SAMPLING))
        await until(lambda: len(policy.asked) == 1)
        policy.fault, policy.pause = None, 0.4
        for _ in range(4):  # five seconds in all
            await engines.generate(PROMPT, SAMPLING)
        assert not waiting.done()
        with pytest.raises(EnginesDown, match="said nothing"):
            await waiting


async def test_what_was_told_is_not_drawn_again(serve: Callable[..., VllmServer]) -> None:
    one, other = serve("demo"), serve("demo")
    async with engines_on([one, other], [serve("rm")], interval=60) as engines:
        one.fault = other.fault = always(lambda: sse([part("a")], end=""))
        told: list[Delta] = []
        with pytest.raises(EnginesDown, match="breaks off"):
            await engines.generate(PROMPT, SAMPLING, told.append)
    assert [delta.text for delta in told] == ["a"]
    assert len(one.asked + other.asked) == 1


async def test_a_dead_server_is_left_out_and_comes_back(serve: Callable[..., VllmServer]) -> None:
    one, other = serve("demo"), serve("demo")
    async with engines_on([one, other], [serve("rm")]) as engines:
        one.stop()
        assert [(await engines.generate(PROMPT, SAMPLING)).tokens for _ in range(4)] == [3] * 4
        assert len(other.asked) == 4
        other.stop()
        with pytest.raises(EnginesDown, match="Connect"):
            await engines.generate(PROMPT, SAMPLING)
        assert not await is_up(engines)
        one.start()
        while not await is_up(engines):
            await asyncio.sleep(0.01)
        assert (await engines.generate(PROMPT, SAMPLING)).tokens == 3


async def test_a_server_that_dies_unasked_is_noticed(serve: Callable[..., VllmServer]) -> None:
    policy, reward = serve("demo"), serve("rm")
    async with engines_on([policy], [reward]) as engines:
        reward.healthy = False
        while await is_up(engines):
            await asyncio.sleep(0.01)
        with pytest.raises(EnginesDown, match=r"^reward model reward: http://[^ ]*: 503 without a word$"):
            await engines.check()
        reward.healthy = True
        while not await is_up(engines):
            await asyncio.sleep(0.01)


async def test_one_failed_call_does_not_take_others_down(serve: Callable[..., VllmServer]) -> None:
    policy = serve("demo")
    async with engines_on([policy], [serve("rm")], interval=60) as engines:
        policy.fault, policy.spare_trials = refusing(500), True
        with pytest.raises(RequestFailed, match="500 what a pity"):
            await engines.generate(PROMPT, SAMPLING)
        await engines.check()
        policy.fault = None
        assert (await engines.generate(PROMPT, SAMPLING)).tokens == 3


async def test_a_caller_that_gives_up_closes_the_stream(serve: Callable[..., VllmServer]) -> None:
    policy, reward = serve("demo"), serve("rm")
    async with engines_on([policy], [reward]) as engines:
        policy.pause = 3600
        told: list[Delta] = []
        calls: list[asyncio.Task[Any]] = [
            asyncio.create_task(engines.generate(PROMPT, replace(SAMPLING, seed=seed), told.append))
            for seed in range(8)
        ]
        await until(lambda: policy.running == 8)
        reward.fault = hanging
        calls.append(asyncio.create_task(engines.score([[9]])))
        await until(lambda: reward.running == 1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: policy.running == reward.running == 0)
        policy.pause, reward.fault = 0.0, None
        await engines.check()
        assert (await engines.generate(PROMPT, SAMPLING)).tokens == 3


async def test_the_least_busy_server_is_asked_and_equals_take_turns(serve: Callable[..., VllmServer]) -> None:
    one, other = serve("demo"), serve("demo")
    async with engines_on([one, other], [serve("rm")]) as engines:
        for _ in range(4):
            await engines.generate(PROMPT, SAMPLING)
        assert (len(one.asked), len(other.asked)) == (2, 2)
        one.pause = 0.2
        slow = asyncio.create_task(engines.generate(PROMPT, SAMPLING))
        await until(lambda: one.running == 1)
        for _ in range(3):
            await engines.generate(PROMPT, SAMPLING)
        assert (len(one.asked), len(other.asked)) == (3, 5)
        await slow
        one.pause = 0.0
        await asyncio.gather(*(engines.generate(PROMPT, SAMPLING) for _ in range(20)))
        assert (len(one.asked), len(other.asked)) == (13, 15)


async def test_more_calls_than_connections_wait_for_one(serve: Callable[..., VllmServer]) -> None:
    policy = serve("demo")
    settings = Settings(policy_urls=(policy.url,), reward_urls=(serve("rm").url,), max_sequences=1)
    engines = RemoteEngines(settings, ["demo"], {"reward": ()}, 1)
    await engines.start()
    drawn = await asyncio.gather(*(engines.generate(PROMPT, replace(SAMPLING, seed=seed)) for seed in range(9)))
    assert Counter(one.text for one in drawn) == Counter(f"answer of {seed}" for seed in range(9))
    engines.stop()


async def test_starting_waits_for_every_role_and_can_be_given_up(serve: Callable[..., VllmServer]) -> None:
    policy, reward = serve("demo", max_model_len=50), serve("rm")
    reward.stop()
    settings = Settings(policy_urls=(policy.url,), reward_urls=(reward.url,))
    engines = RemoteEngines(settings, ["demo"], {"reward": ()}, context=77, interval=0.1)
    assert engines.context == 77
    with pytest.raises(EnginesDown, match="not up"):
        await engines.check()
    starting = asyncio.create_task(engines.start())
    await until(lambda: policy.trials == 1)
    await asyncio.sleep(0.3)
    assert not starting.done()
    assert not await is_up(engines)
    reward.start()
    await asyncio.wait_for(starting, SOON)
    await engines.check()
    assert engines.context == 50
    engines.stop()
    with pytest.raises(EnginesDown, match="not up"):
        await engines.generate(PROMPT, SAMPLING)

    reward.stop()
    starting = asyncio.create_task(engines.start())
    await asyncio.sleep(0.3)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, SOON)


async def test_a_policy_server_is_no_reward_model(serve: Callable[..., VllmServer]) -> None:
    mistaken = serve("demo")
    mistaken.fault = refusing(404, "Not Found")
    settings = Settings(policy_urls=(serve("demo").url,), reward_urls=(mistaken.url,))
    engines = RemoteEngines(settings, ["demo"], {"reward": ()}, context=77)
    starting = asyncio.create_task(engines.start())
    async with asyncio.timeout(SOON):
        while "404 Not Found" not in await lack(engines):
            await asyncio.sleep(0.01)
    with pytest.raises(EnginesDown, match=r"reward model reward: .*404 Not Found"):
        await engines.score([[9]])
    assert not await is_up(engines)
    assert not starting.done()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


async def test_several_reward_models_each_have_their_servers(serve: Callable[..., VllmServer]) -> None:
    terse, helpful = serve("t"), serve("h")
    settings = Settings(policy_urls=(serve("demo").url,), reward_urls=(f"helpful={helpful.url}", f"terse={terse.url}"))
    engines = RemoteEngines(settings, ["demo"], {"helpful": (), "terse": ()}, 99)
    await asyncio.wait_for(engines.start(), SOON)
    assert await engines.score([[2], [5]]) == [1.0, 2.5]
    assert (helpful.asked[0]["input"], terse.asked[0]["input"]) == ([2], [5])
    engines.stop()


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ({"policy_urls": "a:8001"}, ["r"], "--policy-urls: got 'a:8001', accepted: addresses such as"),
        ({"policy_urls": "http://a,"}, ["r"], "--policy-urls: got ''"),
        ({"policy_urls": "http://a,http://a/"}, ["r"], "--policy-urls: got .* accepted: each address once"),
        ({"policy_urls": "x=http://a"}, ["r"], "--policy-urls: got 'x=http://a'"),
        ({"reward_urls": "http://c"}, ["r"], "--policy-urls: got None"),
        ({"policy_urls": "http://a"}, ["r"], "--reward-urls: got None, accepted: a server for the reward model r"),
        ({"policy_urls": "http://a", "reward_urls": "http://c"}, ["r", "s"], "--reward-urls: .*reward model: r, s"),
        ({"policy_urls": "http://a", "reward_urls": "t=http://c"}, ["r"], "--reward-urls: got 't=http://c'"),
        ({"policy_urls": "http://a", "reward_urls": "r=http://c"}, ["r", "s"], "for the reward model s"),
        ({"policy_urls": "http://a", "remote_timeout": "0"}, ["r"], "--remote-timeout: got '0'"),
    ],
)
def test_addresses_that_do_not_fit_are_named(given: dict[str, str | None], names: list[str], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        RemoteEngines(parse_settings(given), ["demo"], dict.fromkeys(names, ()), 1)


async def test_the_reference_is_asked_for_given_tokens(serve: Callable[..., VllmServer]) -> None:
    reference = serve("base")
    async with engines_on([serve("demo")], [serve("rm")], [reference]) as engines:
        answer = await engines.next_logprobs(PROMPT, (7, 9))
        assert answer == NextToken((-math.inf, -4.5), tokens=4, cached_tokens=2)
    assert reference.asked == [
        {
            "model": "base",
            "prompt": PROMPT,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 0,
            "logprob_token_ids": [7, 9],
            "return_tokens_as_token_ids": True,
        }
    ]


async def test_a_server_that_does_not_know_given_tokens_is_set_aside(serve: Callable[..., VllmServer]) -> None:
    reference = serve("base")
    async with engines_on([serve("demo")], [serve("rm")], [reference]) as engines:
        reference.fault, reference.spare_trials = always(lambda: JSONResponse(part("x", "length") | USAGE)), True
        with pytest.raises(EnginesDown, match="without the log-probability of token 7"):
            await engines.next_logprobs(PROMPT, (7, 9))
        reference.fault = refusing(400)
        with pytest.raises((RequestFailed, EnginesDown)):
            await engines.next_logprobs(PROMPT, (7, 9))
