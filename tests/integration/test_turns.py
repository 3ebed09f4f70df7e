"""What current policies take, through vLLM and the real `openai` client: continued answers, reasoning, calls of tools.

The demo continues answers. A small random policy with a template for reasoning and tools does the rest: its weights
make it end its reasoning after some ten tokens, and a schema makes it write a call.
"""

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from infalign import Bundle, read_bundle
from tests.integration.conftest import INFALIGN, serving
from training.tokenizer import train_tokenizer

U = {"role": "user", "content": "My bicycle has weak brakes. What should I do?"}
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}
TEMPLATE = (
    "{% if tools %}{{ '<|system|>' + tools | tojson + '<|end|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.arguments.town }}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '</think>' }}{% endif %}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}},
}
CALL = {"name": "weather", "parameters": {"town": "Oslo"}}
CALL_ONLY = {"type": "json_schema", "json_schema": {"name": "call", "schema": {"const": CALL}}}


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_demo_continues_an_answer_that_is_scored_as_a_whole(server: str) -> None:
    begun = [U, {"role": "assistant", "content": [{"type": "text", "text": "Please check"}]}]
    fields: dict[str, Any] = {"model": "demo:best-of-4", "messages": begun, "seed": 3, "extra_body": CONTINUED}
    choice = connect(server).chat.completions.create(**fields).choices[0]
    text = choice.message.content or ""
    assert text
    assert not text.startswith("Please check")
    streamed = [
        chunk.choices[0].delta.content or ""
        for chunk in connect(server).chat.completions.create(**fields, stream=True)
        if chunk.choices
    ]
    assert "".join(streamed) == text

    def reward(body: dict[str, Any]) -> float:
        answer = httpx.post(f"{server}/v1/rewards", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return float(answer.json()["rewards"][0]["reward"])

    whole = reward({"messages": [U], "responses": ["Please check" + text]})
    assert reward({"messages": begun, **CONTINUED, "responses": [text]}) == whole
    assert choice.model_extra is not None
    assert choice.model_extra["reward"] == pytest.approx(whole, abs=1e-3)
    calibrated = httpx.post(f"{server}/v1/calibrations", json={"messages": begun, **CONTINUED}, timeout=300).json()
    assert (calibrated["scope"], calibrated["cached"]) == ("prompt", False)
    with pytest.raises(openai.BadRequestError, match="continue_final_message"):
        connect(server).chat.completions.create(model="demo", messages=begun)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(["Check the brakes."] * 4, 400)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    tokenizer.add_tokens([AddedToken("<|python_tag|>", special=True)])  # the parser of calls asks for it
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def prefer(model: LlamaForCausalLM, token: int, bias: float) -> None:
    """Add a bias to the logit of a token. One channel of the hidden state is made constant for that."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = 0
        constant = model.model(input_ids=torch.arange(9)[None]).last_hidden_state[..., 0].mean()
        model.lm_head.weight[token, 0] = bias / constant


@pytest.fixture(scope="module")
def thinker_home(
    bundle: Bundle, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """``$INFALIGN_HOME`` with a random policy in it."""
    home = tmp_path_factory.mktemp("thinker")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    prefer(model, tokenizer.convert_tokens_to_ids("</think>"), math.log(len(tokenizer) / 9))
    model.save_pretrained(home / "thinker")
    tokenizer.save_pretrained(home / "thinker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFALIGN_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def thinker(bundle: Bundle, thinker_home: Path) -> Iterator[str]:
    """URL of a server of this policy, whose bundle it makes first, with parsers of reasoning and of calls."""
    models = ("--policy", str(thinker_home / "thinker"), "--reward", str(bundle.reward_model))
    parsers = ("--reasoning-parser", "deepseek_r1", "--tool-parser", "llama3_json")
    store = ("--calibration-store", str(thinker_home / "calibrations.sqlite"))
    with serving(thinker_home / "log", *models, *parsers, *store) as url:
        yield url


@pytest.fixture
def thinker_bundle(thinker: str, thinker_home: Path) -> Bundle:
    """The bundle that the server made."""
    (path,) = (thinker_home / "bundles").iterdir()
    return read_bundle(path)


@pytest.fixture
def fields() -> dict[str, Any]:
    """A request whose responses end their reasoning after some ten tokens."""
    return {"model": "thinker", "messages": [U], "seed": 0, "max_tokens": 160}


@pytest.fixture
def unmarked(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Fields with which the policy never writes the mark that ends reasoning."""
    return {"logit_bias": {str(tokenizer.convert_tokens_to_ids("</think>")): -100}}


def test_reasoning_is_separated_and_the_answer_alone_is_scored(thinker: str, fields: dict[str, Any]) -> None:
    client = connect(thinker)
    extra = {"best_of": 4, "return_candidates": True}
    completion = client.chat.completions.create(**fields, extra_body=extra)
    candidates = (completion.model_extra or {})["candidates"]
    assert len({candidate.get("reasoning") for candidate in candidates}) > 1
    best = max(candidates, key=lambda candidate: float(candidate["reward"]))
    message = completion.choices[0].message
    assert (message.content, (message.model_extra or {}).get("reasoning")) == (best["text"], best.get("reasoning"))
    body = {"messages": [U], "responses": [candidate["text"] for candidate in candidates]}
    scored = httpx.post(f"{thinker}/v1/rewards", json=body, timeout=120).json()["rewards"]
    for candidate, alone in zip(candidates, scored, strict=True):
        assert candidate["reward"] == pytest.approx(alone["reward"], abs=1e-3)


def test_a_stream_has_what_the_whole_answer_has(thinker: str, fields: dict[str, Any]) -> None:
    fields |= {"tools": [TOOL], "response_format": CALL_ONLY}
    reasonings = set()
    for seed in range(3):
        fields["seed"] = seed
        whole = connect(thinker).chat.completions.create(**fields).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.content is None
        (call,) = whole.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", CALL["parameters"])
        reasoning = arguments = name = end = ""
        for chunk in connect(thinker).chat.completions.create(**fields, stream=True):
            delta = chunk.choices[0].delta
            reasoning += (delta.model_extra or {}).get("reasoning", "")
            for part in delta.tool_calls or ():
                assert part.function is not None
                name += part.function.name or ""
                arguments += part.function.arguments or ""
            end = chunk.choices[0].finish_reason or end
        assert reasoning == (whole.message.model_extra or {}).get("reasoning", "")
        assert (name, json.loads(arguments), end) == ("weather", CALL["parameters"], "tool_calls")
        reasonings.add(reasoning)
    assert len(reasonings) > 1
    ranked = connect(thinker).chat.completions.create(**fields, stream=True, extra_body={"best_of": 2})
    calls = [part for chunk in ranked if chunk.choices for part in chunk.choices[0].delta.tool_calls or ()]
    assert [(part.index, part.function and part.function.name) for part in calls] == [(0, "weather")]

    dialogue = [U, whole.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "-3"}]
    again = connect(thinker).chat.completions.create(**fields | {"messages": dialogue})
    assert again.choices[0].message.tool_calls


def test_reasoning_that_does_not_end_is_no_answer(
    thinker: str, fields: dict[str, Any], unmarked: dict[str, Any]
) -> None:
    fields |= {"max_tokens": 8}
    completion = connect(thinker).chat.completions.create(**fields, extra_body={"best_of": 16})
    missing = (completion.model_extra or {})["missing"]
    assert missing["asked"] == 16
    assert 0 < missing["reasons"]["no_answer"] < 16
    fields |= unmarked
    with pytest.raises(openai.BadRequestError, match="reasoning takes more than 8 tokens") as refusal:
        connect(thinker).chat.completions.create(**fields)
    assert refusal.value.code == "no_answer"


def test_a_variable_turns_reasoning_off(thinker: str, fields: dict[str, Any], unmarked: dict[str, Any]) -> None:
    fields |= unmarked | {
        "max_tokens": 8,
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "calibrate": True},
    }
    completion = connect(thinker).chat.completions.create(**fields)
    assert completion.choices[0].message.content
    assert "reasoning" not in (completion.choices[0].message.model_extra or {})
    assert (completion.model_extra or {})["calibration"] == {"scope": "prompt", "samples": 32}
    streamed = connect(thinker).chat.completions.create(**fields, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == completion.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="variables other than messages"):
        connect(thinker).chat.completions.create(**fields | {"extra_body": {"chat_template_kwargs": {"messages": []}}})


def test_the_bundle_is_calibrated_on_answers_by_the_parser_that_it_names(
    thinker: str, thinker_bundle: Bundle, fields: dict[str, Any]
) -> None:
    assert thinker_bundle.calibration.reasoning_parser == "deepseek_r1"
    first = thinker_bundle.examples[0]
    prompt = [dict(message) for message in first.prompt]
    answer = httpx.post(f"{thinker}/v1/calibrations", json={"messages": prompt}, timeout=300).json()
    assert (answer["scope"], answer["cached"]) == ("prompt", True)
    completion = connect(thinker).chat.completions.create(**fields | {"messages": prompt})
    assert (completion.model_extra or {})["calibration"] == {"scope": "prompt", "samples": 32}
    body = {"messages": prompt, "responses": [first.response]}
    reward = httpx.post(f"{thinker}/v1/rewards", json=body, timeout=120).json()["rewards"][0]["reward"]
    assert reward == pytest.approx(first.rewards["reward"], abs=1e-3)


def test_an_unknown_parser_is_one_line(bundle: Bundle) -> None:
    command = [INFALIGN, "serve", str(bundle.path), "--tool-parser", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "--tool-parser: got 'x', accepted: " in done.stderr
    assert "hermes, " in done.stderr
