"""What current policies take: variables of templates, answers that are continued, reasoning, and calls of tools."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from tokenizers import AddedToken

from infalign.errors import InvalidValue
from infalign.reasoning import AnswerProcess, AnswerReader
from server import cli
from server.app import ServedBundle, create_app
from server.decoding.calibrator import calibration_digest
from server.engines import Completion, Delta, Sampling
from server.engines.turns import TurnParsers
from server.settings import Settings
from tests.bad_requests import BEST, CALIBRATIONS, CHAT, REWARDS, WORST
from tests.fakes import KNOWN, LAW, MARKS, CharacterTokenizer, FakeEngines, ScriptedEngines, fake_served
from tests.streams import events
from tests.unit.server.conftest import client_of
from training.tokenizer import train_tokenizer

pytestmark = pytest.mark.anyio
U = {"role": "user", "content": KNOWN}
PREFILLED: dict[str, Any] = {
    "messages": [U, {"role": "assistant", "content": "You should"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"town": "Oslo"}}</tool_call>'
TOWN = {"name": "weather", "arguments": '{"town": "Oslo"}'}


@asynccontextmanager
async def serving(
    engines: FakeEngines, served: ServedBundle | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(max_n=16, **settings), engines, served or fake_served())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


def with_parser(served: ServedBundle, parser: str) -> ServedBundle:
    """A bundle that was calibrated with a parser of reasoning."""
    record = served.bundle.calibration.model_copy(update={"reasoning_parser": parser})
    return replace(served, bundle=replace(served.bundle, calibration=record))


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    answer = await client.post(path, json={"messages": [U], "seed": 0, **body} if path in (CHAT, BEST) else body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas of a chat stream that say something, and its finish reason."""
    answer = await client.post(CHAT, json={"messages": [U], "seed": 0, "stream": True, **body})
    choices = [choice for _, event in events(answer.text) for choice in event["choices"]]
    deltas = [{key: value for key, value in each["delta"].items() if key != "role"} for each in choices]
    return [delta for delta in deltas if delta] + [{"end": choices[-1]["finish_reason"]}]


def joined(deltas: list[dict[str, Any]], key: str) -> str:
    return "".join(delta.get(key) or "" for delta in deltas)


# Variables of templates.


@pytest.mark.parametrize("path", [CHAT, BEST, WORST, REWARDS, CALIBRATIONS])
async def test_variables_reach_the_template_of_the_policy_alone(path: str) -> None:
    engines = ScriptedEngines("4")
    async with serving(engines) as client:
        extra = {"responses": ["4"]} if path == REWARDS else {}
        body = {"messages": [U], "chat_template_kwargs": {"enable_thinking": False}, **extra}
        assert (await client.post(path, json=body)).status_code == 200
    assert all(prompt.startswith("{enable_thinking=false}[user]") for prompt in engines.prompts)
    assert bool(engines.prompts) == (path != REWARDS)
    assert not any("thinking" in text for text in engines.scored)


async def test_variables_make_another_prompt(client: httpx.AsyncClient) -> None:
    keys = [
        (await ask(client, CALIBRATIONS, {"messages": [U], "chat_template_kwargs": variables}))["prompt_key"]
        for variables in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    assert len(set(keys)) == 3


DEEP: Any = 1
for _ in range(70):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"forbidden": 1}, "the chat template of the policy does not accept them: it knows no such variable"),
        ({"messages": []}, "variables other than messages"),
        ({"tools": []}, "variables other than tools"),
        ({"add_generation_prompt": True}, "variables other than add_generation_prompt"),
        ({"chat_template": "{{ x }}"}, "variables other than chat_template"),
        ({"bos_token": "x"}, "variables other than bos_token"),
        ({"a b": 1}, "pattern"),
        ({"deep": DEEP}, "nested at most 64 deep"),
        ({"long": "x" * 70_000}, "at most 65536 characters"),
        ({"half": "\ud83d"}, "whole characters"),
        ([], "a valid dictionary"),
    ],
    ids=lambda value: next(iter(value), "list") if isinstance(value, dict) else None,
)
async def test_variables_that_are_not_accepted(client: httpx.AsyncClient, variables: Any, message: str) -> None:
    body = json.dumps({"messages": [U], "chat_template_kwargs": variables})
    answer = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"].partition(".")[0] == "chat_template_kwargs"
    assert message in error["message"]


@pytest.mark.parametrize(
    "fields", [{"chat_template_kwargs": {"a": 1}}, {"tools": [TOOL]}, {"continue_final_message": True}]
)
async def test_a_raw_prompt_has_none_of_it(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    body = {"prompt": "x", "add_generation_prompt": "continue_final_message" not in fields, **fields}
    answer = await client.post(BEST, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


# Answers that are continued.


@pytest.mark.parametrize("path", [CHAT, BEST, WORST])
async def test_an_answer_is_continued_and_scored_as_a_whole(path: str) -> None:
    engines = ScriptedEngines(" rest 4", " wait 2")
    async with serving(engines) as client:
        fields = {"n": 2, "best_of": 2} if path == CHAT else {"n": 2, "top": 2}
        answer = await ask(client, path, {**PREFILLED, "seed": 0, **fields})
    assert set(engines.prompts) == {f"[user]{KNOWN}.[assistant]You should"}
    assert set(engines.scored) == {f"[user]{KNOWN}.[assistant]You should{text}." for text in engines.texts}
    texts = (
        [choice["message"]["content"] for choice in answer["choices"]]
        if path == CHAT
        else [candidate["text"] for candidate in answer["selected"]]
    )
    assert texts == ([" wait 2", " rest 4"] if path == WORST else [" rest 4", " wait 2"])


async def test_a_continuation_is_streamed() -> None:
    async with serving(ScriptedEngines(" rest 4")) as client:
        assert joined(await stream(client, PREFILLED), "content") == " rest 4"
        assert joined(await stream(client, {**PREFILLED, "best_of": 2}), "content") == " rest 4"


async def test_the_reference_continues_too_and_rewards_are_of_the_whole_turn() -> None:
    engines = ScriptedEngines(" rest 4")
    async with serving(engines) as client:
        calibration = await ask(client, CALIBRATIONS, PREFILLED)
        rewards = await ask(client, REWARDS, {**PREFILLED, "responses": [" rest 4"]})
    assert (calibration["scope"], calibration["cached"]) == ("prompt", False)
    assert set(engines.prompts) == {f"[user]{KNOWN}.[assistant]You should"}
    assert set(engines.scored) == {f"[user]{KNOWN}.[assistant]You should rest 4."}
    assert rewards["calibration"]["scope"] == "prompt", "it is the same prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "continue_final_message"),
        ({"messages": [U]}, "messages"),
        ({"continue_final_message": False, "add_generation_prompt": True}, "messages"),
    ],
)
async def test_what_is_continued_is_said_twice(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    base = PREFILLED if len(fields) == 2 or "messages" in fields else {"messages": PREFILLED["messages"]}
    answer = await client.post(CHAT, json={**base, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_parts_of_text_are_one_text() -> None:
    engines = ScriptedEngines(" 4")
    parts = [{"type": "text", "text": text} for text in ("You ", "should")]
    turns = [U, {"role": "assistant", "content": parts}]
    async with serving(engines) as client:
        await ask(client, CHAT, {**PREFILLED, "messages": turns})
        await ask(client, REWARDS, {**PREFILLED, "messages": turns, "responses": [" 4"]})
        await ask(client, CHAT, {"messages": [U, {"role": "tool", "content": parts, "tool_call_id": "1"}]})
    assert engines.prompts[0].endswith("[assistant]You should")
    assert engines.scored[1].endswith("[assistant]You should 4.")
    assert '[tool](tool_call_id:"1")You should.' in engines.prompts[1]


# Reasoning.

R1 = {"reasoning_parser": "deepseek_r1"}


async def test_reasoning_is_separated_before_the_answer_is_scored() -> None:
    engines = ScriptedEngines("<think>hm 9</think>answer 4", "<think>oh 1</think>answer 7")
    async with serving(engines, **R1) as client:
        chat = await ask(client, CHAT, {"best_of": 2})
        best = await ask(client, BEST, {"n": 2, "return_candidates": True})
        parts = await stream(client, {})
        ranked = await stream(client, {"best_of": 2})
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "answer 7", "reasoning": "oh 1"}
    assert (best["selected"][0]["text"], best["selected"][0]["reasoning"]) == ("answer 7", "oh 1")
    assert [candidate["reward"] for candidate in best["candidates"]] == [4, 7]
    assert {text.rpartition("[assistant]")[2] for text in engines.scored} == {"answer 4.", "answer 7."}
    assert (joined(parts, "reasoning"), joined(parts, "content")) == ("hm 9", "answer 4")
    assert {"content": "answer 7", "reasoning": "oh 1"} in ranked


async def test_reasoning_without_an_end_is_not_an_answer() -> None:
    async with serving(ScriptedEngines("<think>hm 9…", "</think>answer 4"), **R1) as client:
        best = await ask(client, BEST, {"n": 4, "top": 2})
        assert [candidate["text"] for candidate in best["selected"]] == ["answer 4", "answer 4"]
        assert best["missing"] == {"asked": 4, "reasons": {"no_answer": 2}}
        assert best["usage"]["completion_tokens"] == 2 * sum(map(len, ("<think>hm 9…", "</think>answer 4")))
        for fields in ({"n": 4, "top": 3}, {"n": 4, "min_candidates": 3}, {"n": 1}):
            answer = await client.post(BEST, json={"messages": [U], "seed": 0, **fields})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_answer")
            assert answer.json()["error"]["param"] == "max_tokens"
        assert "no_answer" in (await client.post(CHAT, json={"messages": [U], "seed": 0, "stream": True})).text


async def test_an_answer_that_is_empty_is_scored() -> None:
    async with serving(ScriptedEngines("<think>hm 9</think>"), **R1) as client:
        message = (await ask(client, CHAT, {}))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "", "reasoning": "hm 9"}


async def test_a_calibration_is_of_answers_and_of_no_other_parser() -> None:
    engines = ScriptedEngines("<think>hm 9…", *["<think>hm 9</think>answer 4"] * 2)
    async with serving(engines, **R1) as client:
        assert (await ask(client, BEST, {"n": 2}))["calibration"]["scope"] == "global", "the bundle's is of all text"
        engines.scored.clear()
        calibration = await ask(client, CALIBRATIONS, {"messages": [U]})
        assert (await ask(client, BEST, {"n": 2}))["calibration"]["scope"] == "prompt"
    assert calibration["samples"] == len(engines.scored) - 1 == 10
    assert calibration["reference_rewards"]["reward"]["5"] == 4
    async with serving(engines) as client:
        assert (await ask(client, CALIBRATIONS, {"messages": [U]}))["prompt_key"] != calibration["prompt_key"]


async def test_the_parser_of_the_bundle_is_used_with_its_calibrations() -> None:
    served = with_parser(fake_served(), "deepseek_r1")
    engines = ScriptedEngines("<think>hm 9</think>answer 4")
    for settings in ({}, R1):
        async with serving(engines, served, **settings) as client:
            best = await ask(client, BEST, {"n": 2})
            assert best["calibration"]["scope"] == "prompt", "the bundle's is of answers"
            assert best["selected"][0]["reasoning"] == "hm 9"
    with pytest.raises(InvalidValue, match="--reasoning-parser: got 'qwen3', accepted: deepseek_r1, with which"):
        create_app(Settings(reasoning_parser="qwen3"), engines, served)
    digests = {calibration_digest(each.bundle.calibration) for each in (served, fake_served())}
    assert len(digests) == 2, "calibrations on demand are kept apart"


async def test_a_calibration_without_answers_is_refused() -> None:
    async with serving(ScriptedEngines("<think>hm 9…"), **R1) as client:
        answer = await client.post(CALIBRATIONS, json={"messages": [U]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_answer")


async def test_reasoning_may_be_part_of_what_is_continued() -> None:
    engines = ScriptedEngines(" hm</think>answer 4")
    turns = [U, {"role": "assistant", "content": "<think>well"}]
    async with serving(engines, **R1) as client:
        message = (await ask(client, CHAT, {**PREFILLED, "messages": turns}))["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "answer 4", "reasoning": " hm"}
        assert engines.scored[-1].endswith("[assistant]answer 4.")
        engines.texts = (" of course 3",)
        turns = [U, {"role": "assistant", "content": "<think>well</think>Yes"}]
        for body in ({**PREFILLED, "messages": turns}, PREFILLED):
            message = (await ask(client, CHAT, body))["choices"][0]["message"]
            assert message == {"role": "assistant", "content": " of course 3"}
            assert joined(await stream(client, body), "content") == " of course 3"
        assert engines.scored[0].endswith("[assistant]answer 4.")
    assert [text.rpartition("]")[2] for text in engines.scored[1::2]] == ["Yes of course 3.", "You should of course 3."]


async def test_earlier_reasoning_is_read_by_the_policy_alone() -> None:
    engines = ScriptedEngines("4")
    async with serving(engines) as client:
        for key in ("reasoning", "reasoning_content"):
            await ask(client, CHAT, {"messages": [U, {"role": "assistant", "content": "Yes.", key: "hm"}, U]})
    assert all('(reasoning:"hm")(reasoning_content:"hm")' in prompt for prompt in engines.prompts)
    assert not any("hm" in text for text in engines.scored)


# Calls of tools.

HERMES = {"tool_parser": "hermes"}


async def test_calls_are_read_and_scored_as_they_were_drawn() -> None:
    engines = ScriptedEngines(f"Let me see 3 {CALL}", "I cannot 1")
    async with serving(engines, **HERMES) as client:
        whole = await ask(client, CHAT, {"tools": [TOOL], "n": 2})
        best = await ask(client, BEST, {"tools": [TOOL], "n": 1})
        parts = await stream(client, {"tools": [TOOL]})
        ranked = await stream(client, {"tools": [TOOL], "best_of": 1})
        engines.texts = (CALL,)
        alone = (await ask(client, CHAT, {"tools": [TOOL]}))["choices"][0]["message"]
    first, second = whole["choices"]
    (call,) = first["message"]["tool_calls"]
    assert (call["type"], call["function"], first["finish_reason"]) == ("function", TOWN, "tool_calls")
    assert first["message"]["content"] == "Let me see 3 "
    assert (second["message"], second["finish_reason"]) == ({"role": "assistant", "content": "I cannot 1"}, "stop")
    assert any(text.endswith(f"[assistant]Let me see 3 {CALL}.") for text in engines.scored)
    assert all(text.startswith("{tools=") for text in [*engines.prompts, *engines.scored])
    assert best["selected"][0]["tool_calls"][0]["function"] == TOWN
    assert best["selected"][0]["finish_reason"] == "tool_calls"
    for deltas in (parts, ranked):
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert {call["index"] for call in calls} == {0}
        assert "".join(call["function"].get("name", "") for call in calls) == "weather"
        assert "".join(call["function"].get("arguments", "") for call in calls) == TOWN["arguments"]
        assert joined(deltas, "content") == "Let me see 3 "
        assert deltas[-1] == {"end": "tool_calls"}
    assert alone["content"] is None


async def test_reasoning_comes_before_a_call() -> None:
    engines = ScriptedEngines(f"<think>hm 9</think>{CALL}")
    async with serving(engines, **R1, **HERMES) as client:
        message = (await ask(client, CHAT, {"tools": [TOOL]}))["choices"][0]["message"]
        deltas = await stream(client, {"tools": [TOOL]})
    assert (message["content"], message["reasoning"]) == (None, "hm 9")
    assert message["tool_calls"][0]["function"] == TOWN
    assert joined(deltas, "reasoning") == "hm 9"
    assert joined(deltas, "content") == ""
    assert engines.scored[0].endswith(f"[assistant]{CALL}.")


async def test_one_call_if_the_client_wants_no_more() -> None:
    async with serving(ScriptedEngines(CALL + CALL), **HERMES) as client:
        for parallel, count in ((True, 2), (False, 1)):
            fields = {"tools": [TOOL], "parallel_tool_calls": parallel}
            choice = (await ask(client, CHAT, fields))["choices"][0]
            assert len(choice["message"]["tool_calls"]) == count
            indexes = {call["index"] for delta in await stream(client, fields) for call in delta.get("tool_calls", ())}
            assert indexes == set(range(count))


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": [TOOL], "tool_choice": "none"}, {"tools": None}])
@pytest.mark.parametrize("settings", [{}, HERMES])
async def test_no_tools_are_no_tools(fields: dict[str, Any], settings: dict[str, Any]) -> None:
    engines = ScriptedEngines(CALL)
    async with serving(engines, **settings) as client:
        assert (await ask(client, CHAT, fields))["choices"][0]["message"]["content"] == CALL
    assert engines.prompts[0].startswith("[user]")


@pytest.mark.parametrize("path", [CHAT, BEST, WORST, REWARDS, CALIBRATIONS])
async def test_tools_take_an_option_of_the_operator(client: httpx.AsyncClient, path: str) -> None:
    extra = {"responses": ["4"]} if path == REWARDS else {}
    answer = await client.post(path, json={"messages": [U], "tools": [TOOL], **extra})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "tools")
    assert "--tool-parser" in error["message"]


async def test_a_dialogue_with_tools_reaches_the_template() -> None:
    engines = ScriptedEngines("Cold 4")
    call = {"id": "c1", "type": "function", "function": TOWN}
    added = call | {"index": 0, "function": TOWN | {"parsed_arguments": {"town": "Oslo"}}}  # by the helpers of openai
    wrong = {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": "{"}}
    turns = [
        U,
        {"role": "assistant", "content": None, "tool_calls": [added, wrong]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "-3"},
    ]
    async with serving(engines, **HERMES) as client:
        await ask(client, CHAT, {"messages": turns, "tools": [TOOL]})
    rendered = [call | {"function": {"name": "weather", "arguments": {"town": "Oslo"}}}]
    rendered += [wrong | {"function": {"name": "weather", "arguments": {}}}]
    end = f'[assistant](tool_calls:{json.dumps(rendered)}).[tool](tool_call_id:"c1")(name:"weather")-3.[assistant]'
    assert engines.prompts[0].endswith(end)
    assert engines.scored[0].endswith(end + "Cold 4.")


# Parsers of several kinds, with a real tokenizer.


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = train_tokenizer(["hello"], 300)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in MARKS])
    return tokenizer


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3", "glm45", "granite_thinking_parser", "kimi_k2", "step3p5"])
@pytest.mark.parametrize(
    ("prompt", "text", "separated"),
    [
        ("<|assistant|>", "<think>hm</think>yes", ("hm", "yes")),
        ("<|assistant|><think>", "hm</think>yes", ("hm", "yes")),
        ("<|assistant|><think></think>", "yes", (None, "yes")),
        ("<|assistant|><think>", "hm", ("hm", "")),
    ],
)
def test_a_text_is_separated_alike_whole_and_growing(
    tokenizer: Any, name: str, prompt: str, text: str, separated: tuple[str | None, str]
) -> None:
    prompt_tokens, tokens = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, text))
    parser = TurnParsers(tokenizer, name).for_prompt(prompt_tokens)
    turn = parser.read(Completion(text, len(tokens), "length"))
    assert (turn.reasoning, turn.answer) == separated
    assert turn.scored == (turn.answer or None)
    told: list[Delta] = []
    listener = parser.stream(told.append)
    for token in tokens:
        listener(Delta(tokenizer.decode([token]), (), (token,)))
    listener(None)
    assert ("".join(delta.reasoning for delta in told) or None, "".join(delta.text for delta in told)) == separated


@pytest.mark.parametrize(("thinking", "answer"), [(True, ("hm", "yes")), (False, (None, "hm</think>yes"))])
def test_variables_reach_the_parser(tokenizer: Any, thinking: bool, answer: tuple[str | None, str]) -> None:
    parser = TurnParsers(tokenizer, "deepseek_v3").for_prompt((), variables={"thinking": thinking})
    turn = parser.read(Completion("hm</think>yes", 9, "stop"))
    assert (turn.reasoning, turn.answer) == answer


@pytest.mark.parametrize("special", [False, True])
def test_answers_are_read_of_tokens_as_the_server_reads_them(tmp_path: Path, special: bool) -> None:
    tokenizer = train_tokenizer(["hello"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)}) if special else None
    tokenizer.add_tokens([AddedToken(mark, special=special) for mark in MARKS])
    tokenizer.save_pretrained(tmp_path)
    end = [tokenizer.eos_token_id]
    rows = [
        ("<|assistant|><think>", "hm</think>yes", end, "yes"),
        ("<|assistant|><think>", "hm</think>yes", [], "yes"),
        ("<|assistant|><think></think>", "yes", end, "yes"),
        ("<|assistant|>", "<think>hm</think>", end, ""),
        ("<|assistant|><think>", "hm", [], None),
        ("<|assistant|><think>", "hm", end, ""),
    ]

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompts = [encode(prompt) for prompt, *_ in rows]
    responses = [encode(text) + last for _, text, last, _ in rows]
    expected = [answer for *_, answer in rows]
    assert AnswerReader("deepseek_r1", tmp_path).read(prompts, responses) == expected
    parser = TurnParsers(tokenizer, "deepseek_r1").for_prompt(prompts[0])
    assert parser.adapt(Sampling.from_law(LAW, policy=None, seed=0)).skip_special_tokens != special
    if special:  # once: vLLM is imported
        process = AnswerProcess("deepseek_r1", tmp_path)
        assert process.read(prompts, responses) == expected
        process.close()
        with pytest.raises(InvalidValue, match=r"rollouts\.reasoning_parser: got 'x', accepted: .*deepseek_r1, "):
            AnswerReader("x", tmp_path)
        with pytest.raises(InvalidValue, match="accepted: a parser that fits the policy and reads text"):
            AnswerReader("openai_gptoss", tmp_path)


# Options of the operator.


def test_a_policy_that_is_served_is_bundled_with_its_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(cli, "make_bundle", lambda _, options: made.append(options))
    monkeypatch.setattr(cli, "run", lambda _, locate, *__: locate())
    done = CliRunner().invoke(cli.serve, ["--policy", "p", "--reward", "r", "--reasoning-parser", "qwen3"])
    assert done.exit_code == 0, done.output
    assert made[0]["--reasoning-parser"] == ("qwen3",)


@pytest.mark.parametrize("option", ["reasoning_parser", "tool_parser"])
def test_an_unknown_parser_is_refused_with_those_that_exist(option: str) -> None:
    with pytest.raises(InvalidValue, match=f"--{option.replace('_', '-')}: got 'nonsense', accepted: .*hunyuan_a13b, "):
        TurnParsers(CharacterTokenizer(), **{option: "nonsense"})


def test_a_parser_that_does_not_fit_the_policy_is_refused() -> None:
    class Plain(CharacterTokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {"a": 9}

    with pytest.raises(InvalidValue, match="could not locate think start/end tokens"):
        TurnParsers(Plain(), "deepseek_r1")
    with pytest.raises(InvalidValue, match="reads text"):
        TurnParsers(CharacterTokenizer(), "openai_gptoss")
