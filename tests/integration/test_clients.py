"""Real clients cannot tell the server from OpenAI's: openai (sync and async), LangChain, inspect_ai."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

from training.data import corpus

ASKED = [{"role": "user", "content": "My bicycle has weak brakes. What should I do?"}]
EVAL = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def probe() -> Task:
    asked = ["How do I unlock a laptop I found?", "My printer is always offline. What should I do?"]
    return Task(dataset=[Sample(input=text, target="e") for text in asked], solver=generate(), scorer=includes())
"""


@pytest.fixture
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def test_openai_streams_the_text_that_it_gets_whole(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "demo", "messages": ASKED, "seed": 5, "n": 2}
    whole = client.chat.completions.create(**fields)
    texts = {0: "", 1: ""}
    usage = None
    for chunk in client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices]
    assert usage == whole.usage


def test_a_plain_program_streams_the_best_of_n(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "demo:best-of-4", "messages": ASKED, "seed": 5}
    whole = client.chat.completions.create(**fields)
    told = []
    text = ""
    for chunk in client.chat.completions.create(**fields, stream=True):
        text += chunk.choices[0].delta.content or ""  # as plain programs do
        if side := (chunk.model_extra or {}).get("candidate"):
            told.append((side["event"], side["index"]))
    assert text == whole.choices[0].message.content
    assert sorted(told) == sorted((event, i) for event in ("finished", "scored") for i in range(4))
    assert told.index(("scored", 0)) > told.index(("finished", 0))


def test_a_target_stops_draws_and_the_answer_says_so(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "demo", "messages": ASKED, "seed": 5}
    extra = {"best_of": 16, "target_quantile": 0.8, "calibrate": True, "return_candidates": True}
    whole: Any = client.chat.completions.create(**fields, extra_body=extra)
    stopping = whole.stopping
    assert stopping["reason"] in ("target", "cap")
    assert (whole.choices[0].quantile >= 0.8) == (stopping["reason"] == "target")
    assert [candidate["seed"] for candidate in whole.candidates] == list(range(5, 5 + stopping["drawn"]))
    assert stopping["asked"] == 16
    assert stopping["basis"] == "prompt"
    assert 0 <= stopping["miss_probability"] <= 1
    *_, last = client.chat.completions.create(**fields, extra_body=extra, stream=True)
    assert last.model_extra["stopping"] == stopping
    named: Any = client.chat.completions.create(**fields | {"model": "demo:best-of-16@0.8"})
    assert named.stopping == stopping
    assert named.choices[0].message == whole.choices[0].message
    text: Any = client.completions.create(
        model="demo", prompt="Hello", seed=1, max_tokens=8, extra_body={"worst_of": 8, "cost_per_token": 0.001}
    )
    assert text.stopping["reason"] in ("cost", "cap")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**fields, extra_body={"target_quantile": 0.8})
    assert refused.value.param == "target_quantile"


def test_controlled_text_comes_block_by_block_and_is_better_than_a_draw(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "demo:controlled-4x8", "messages": ASKED, "seed": 5}
    whole: Any = client.chat.completions.create(**fields)
    parts: list[Any] = list(client.chat.completions.create(**fields, stream=True))
    texts = [part.choices[0].delta.content for part in parts if part.choices[0].delta.content]
    assert "".join(texts) == whole.choices[0].message.content
    blocks = whole.controlled["blocks"]  # the last has no text if it is the end token alone
    assert blocks > 1
    assert len(texts) in (blocks - 1, blocks)
    assert parts[-1].controlled == whole.controlled
    assert whole.usage.completion_tokens == whole.controlled["drawn_tokens"]
    prompts, means = corpus.prompts()[:: len(corpus.prompts()) // 5], {}
    for model in ("demo", "demo:controlled-4x8"):
        quantiles = []
        for prompt in prompts:
            messages: Any = [{"role": "user", "content": prompt.text}]
            answer = client.chat.completions.create(model=model, messages=messages, seed=1, n=4)
            quantiles += [choice.model_extra["quantile"] for choice in answer.choices if choice.model_extra]
        means[model] = sum(quantiles) / len(quantiles)
    print(f"\nmean quantile over {len(prompts)} prompts: {means}")
    assert means["demo:controlled-4x8"] > means["demo"]


def test_openai_async_and_text_completions(server: str) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            whole = await client.completions.create(model="demo", prompt="Hello", seed=1, max_tokens=12)
            parts = await client.completions.create(model="demo", prompt="Hello", seed=1, max_tokens=12, stream=True)
            return whole.choices[0].text, "".join([part.choices[0].text async for part in parts])

    whole, streamed = asyncio.run(ask())
    assert whole == streamed
    assert whole


def test_log_probabilities_are_those_of_the_text(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="demo", messages=ASKED, seed=2, logprobs=True, top_logprobs=3)
    tokens = chat.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith(chat.choices[0].message.content)
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    text = client.completions.create(model="demo", prompt="Hello", seed=2, logprobs=2, max_tokens=5)
    assert len(text.choices[0].logprobs.token_logprobs) == text.usage.completion_tokens
    parts = client.chat.completions.create(
        model="demo", messages=ASKED, seed=2, logprobs=True, top_logprobs=3, stream=True
    )
    streamed = [t for part in parts if part.choices[0].logprobs for t in part.choices[0].logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in tokens]


def test_what_is_asked_of_the_sampling_is_done(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(model="demo", messages=ASKED, seed=3, stop=["."], n=4)
    assert all("." not in choice.message.content for choice in stopped.choices)
    long = client.completions.create(model="demo", prompt="Hello", max_tokens=30, extra_body={"min_tokens": 30})
    assert long.usage.completion_tokens == 30
    forced = client.completions.create(model="demo", prompt="Hello", max_tokens=3, logit_bias={"300": 100})
    assert forced.choices[0].text[: len(forced.choices[0].text) // 3] * 3 == forced.choices[0].text
    with pytest.raises(openai.BadRequestError, match=r"logit_bias: .*out-of-vocab") as refused:
        client.completions.create(model="demo", prompt="Hello", logit_bias={"999999": 1})
    assert refused.value.param == "logit_bias"
    bad: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=ASKED, response_format=bad)
    assert refused.value.param == "response_format"


def test_a_response_has_the_form_that_is_asked_for(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    import json

    chat: Any = client.chat.completions.create(
        model="demo:best-of-8",
        messages=ASKED,
        response_format=form,
        max_tokens=100,
        seed=1,
        extra_body={"return_candidates": True},
    )
    # A model of this size likes to go on with blanks, which JSON allows anywhere.
    finished = [candidate["text"] for candidate in chat.candidates if candidate["finish_reason"] == "stop"]
    assert finished
    assert all(isinstance(json.loads(text)["yes"], bool) for text in finished)


def test_langchain_invokes_and_streams(server: str) -> None:
    model = ChatOpenAI(model="demo:best-of-4", base_url=f"{server}/v1", api_key="none", max_retries=0, seed=4)
    whole = model.invoke("My laptop freezes every day. What should I do?")
    streamed = "".join(part.text for part in model.stream("My laptop freezes every day. What should I do?"))
    assert whole.text == streamed
    assert whole.usage_metadata["output_tokens"] > 4


def test_openai_retrieves_models_and_sends_its_own_answers_back(client: openai.OpenAI) -> None:
    assert client.models.retrieve("demo:best-of-4").id == "demo:best-of-4"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    answer = client.chat.completions.create(model="demo", messages=ASKED, store=False).choices[0].message
    for sent in (answer, answer.model_dump()):
        client.chat.completions.create(model="demo", messages=[*ASKED, sent, *ASKED])
    with pytest.raises(openai.BadRequestError, match="messages: got a list of 2"):
        client.chat.completions.create(model="demo", messages=[*ASKED, answer])


def test_greedy_candidates_are_one(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="demo", messages=ASKED, temperature=0, n=3)
    assert chat.model_extra["greedy"] is True
    assert len({choice.message.content for choice in chat.choices}) == 1
    assert len(chat.choices) == 3


def test_langchain_completes_text(server: str) -> None:
    where: dict[str, Any] = {"base_url": f"{server}/v1", "api_key": "none", "max_retries": 0, "seed": 4}
    model = OpenAI(model="demo:best-of-2", **where)
    assert model.invoke("Hello") == "".join(model.stream("Hello"))
    assert len(OpenAI(model="demo", batch_size=1, **where).generate(["Hello", "Goodbye"]).generations) == 2


def test_langchain_sends_names_developers_and_no_tools(server: str) -> None:
    model = ChatOpenAI(model="demo", base_url=f"{server}/v1", api_key="none", max_retries=0, store=False)
    assert model.invoke([("developer", "Be brief."), HumanMessage("My laptop freezes.", name="ann")]).text
    assert model.bind_tools([]).invoke("My laptop freezes every day. What should I do?").text


def test_inspect_probes_the_worst_of_n(server: str, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(EVAL)
    command = [sys.executable, "-m", "inspect_ai", "eval", "probe.py", "--model", "openai-api/infalign/demo:worst-of-4"]
    command += ["--log-dir", str(tmp_path / "logs"), "--log-format", "json", "--display", "none"]
    import os

    environment = os.environ | {"INFALIGN_API_KEY": "none", "INFALIGN_BASE_URL": f"{server}/v1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    import json

    log = json.loads(next((tmp_path / "logs").glob("*.json")).read_text())
    assert log["status"] == "success"
    assert [sample["output"]["choices"][0]["stop_reason"] for sample in log["samples"]] == ["stop", "stop"]
