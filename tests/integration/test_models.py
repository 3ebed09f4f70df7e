"""Other people's models: a base model with adapters, a classifier that exists already, prompts alone."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign import Bundle, read_bundle
from infalign.cli import infalign
from infalign.errors import InfAlignError
from infalign.manifest import SamplingLaw
from infalign.templates import render_prompt, tokenise
from tests.commands import run_here
from tests.integration.conftest import launched, wait_until
from training.adoption import turn_sign
from training.evaluation.command import Request, evaluate_bundle
from training.likelihoods import log_probabilities
from training.sampler import load_pair

ASKED = "My bicycle has weak brakes. What should I do?"
LORA = {"rank": 4, "alpha": 8}


def run(home: Path, *arguments: str) -> "CompletedProcess[str]":
    return run_here(*arguments, INFALIGN_HOME=str(home))


def on_base(bundle: Bundle, **changes: Any) -> dict[str, Any]:
    """A config that aligns an adapter on the demo's reference, by the demo's reward model."""
    return {
        "name": "adapted",
        "seed": 0,
        "procedure": "worst-of-4",
        "transformation": "exp(-10)",
        "data": {"prompts": {"paths": [str(bundle.policy().evaluation / "prompts.jsonl")], "held_out": 12}},
        "model": {"base": {"path": str(bundle.reference), "positions": 512}},
        "reward": {"classifiers": [{"path": str(bundle.reward_model), "higher_is": "better"}]},
        "rollouts": {"samples": 8, "max_tokens": 64},
        "ctrl": {
            "target_kl": 0.5,
            "learning_rate": 0.003,
            "prompts": 16,
            "generations": 8,
            "steps": 3,
            "lora": LORA,
        },
        "evaluation": {"draws": 8},
    } | changes


def write_config(home: Path, config: dict[str, Any]) -> str:
    path = home / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def train(home: Path, config: dict[str, Any], *more: str) -> "CompletedProcess[str]":
    return run(home, "train", write_config(home, config), *more)


def last_line(done: "CompletedProcess[str]") -> str:
    assert done.returncode == 2, done.stderr
    return done.stderr.replace("\r", "\n").strip().splitlines()[-1]


@pytest.fixture(scope="module")
def joined(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two adapters on the demo's reference, in one bundle."""
    home = tmp_path_factory.mktemp("adapters")
    for policy, procedure, transformation in (("worst", "worst-of-4", "exp(-10)"), ("best", "best-of-4", "exp(10)")):
        done = train(home, on_base(bundle, policy=policy, procedure=procedure, transformation=transformation))
        assert done.returncode == 0, done.stderr
    assert done.stderr.count("reused") == 5  # all but ctrl and evaluate: the run has the same name
    bundles = [str(home / "bundles" / name) for name in ("best", "worst")]
    done = run(home, "join", *bundles, "--output", str(home / "both"))
    assert done.returncode == 0, done.stderr
    return read_bundle(home / "both")


def test_adapters_share_a_reference_and_differ(joined: Bundle) -> None:
    assert list(joined.policies) == ["best", "worst"]
    assert not (joined.path / "policy").exists()
    sizes = {path.suffix: path.stat().st_size for path in joined.policy("worst").directory.iterdir()}
    assert sizes[".safetensors"] < (joined.reference / "model.safetensors").stat().st_size / 2


def drawn_and_scored(url: str, model: str) -> list[dict[str, Any]]:
    body = {"model": model, "messages": [{"role": "user", "content": ASKED}], "n": 4, "seed": 3, "temperature": 1e-6}
    answer = httpx.post(f"{url}/v1/best-of-n", json=body | {"return_candidates": True}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return answer.json()["candidates"]


def test_adapters_are_named_by_requests_and_loaded_and_unloaded_while_the_server_runs(
    joined: Bundle, tmp_path: Path
) -> None:
    asked = {"messages": [{"role": "user", "content": ASKED}], "n": 2}

    @cache
    def expected(name: str) -> str:
        return greedily(joined, name)

    def answered_by(url: str) -> str:
        return str(httpx.post(f"{url}/v1/worst-of-n", json=asked, timeout=120).json()["model"])

    bundles = ("--bundles", str(joined.path.parent / "bundles"))
    with launched(tmp_path / "log", str(joined.path), *bundles) as server:
        listed = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
        assert listed[:3] == ["best", "worst", "auto"]
        refused = httpx.post(f"{server.url}/v1/best-of-n", json={"model": "other", "prompt": "x", "n": 1})
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
        for name in ("best", "worst"):
            assert drawn_and_scored(server.url, name)[0]["text"] == expected(name)

        assert httpx.delete(f"{server.url}/v1/adapters/worst", timeout=120).status_code == 204
        assert answered_by(server.url) == "best"
        loaded = httpx.post(f"{server.url}/v1/adapters", json={"bundle": "worst"}, timeout=120)
        assert (loaded.status_code, loaded.json()) == (201, {"loaded": ["worst"]}), loaded.text
        assert answered_by(server.url) == "worst"
        assert drawn_and_scored(server.url, "worst")[0]["text"] == expected("worst")

        server.engines[0].kill()
        wait_until(lambda: not server.ready)
        wait_until(lambda: server.ready)
        assert drawn_and_scored(server.url, "worst")[0]["text"] == expected("worst")

        assert httpx.delete(f"{server.url}/v1/adapters/worst", timeout=120).status_code == 204
        assert answered_by(server.url) == "best"
        gone = httpx.post(f"{server.url}/v1/best-of-n", json=asked | {"model": "worst"}, timeout=120)
        assert gone.status_code == 404
        assert drawn_and_scored(server.url, "best")[0]["text"] == expected("best")


def greedily(bundle: Bundle, name: str) -> str:
    """The most likely response, token by token, by transformers and PEFT."""
    policy, _ = load_pair(bundle.policy(name).directory, bundle.reference, SamplingLaw(max_tokens=64))
    messages = [{"role": "user", "content": ASKED}]
    tokens = torch.tensor([tokenise(policy.tokenizer, render_prompt(policy.tokenizer, messages))])
    drawn = policy.model.generate(tokens, do_sample=False, max_new_tokens=64)[0, tokens.shape[1] :]
    return str(policy.tokenizer.decode(drawn, skip_special_tokens=True))


@pytest.fixture(scope="module")
def harm_classifier(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's reward model turned round: it scores harm."""
    path = tmp_path_factory.mktemp("harm")
    model = AutoModelForSequenceClassification.from_pretrained(bundle.reward_model)
    turn_sign(model)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(bundle.reward_model).save_pretrained(path)
    return path


def test_a_stated_sign_that_comparisons_contradict_is_refused(
    bundle: Bundle, harm_classifier: Path, tmp_path: Path
) -> None:
    data = {"helpdesk": {"held_out": 36, "answers": 1, "pairs": 8}}
    classifier = {"path": str(harm_classifier), "higher_is": "better", "name": "harm"}
    config = on_base(bundle, data=data, reward={"classifiers": [classifier]})
    assert (
        "reward.classifiers[harm].higher_is: got 'better', accepted: the other sign: with this one it decides only 0."
        in (last_line(train(tmp_path, config, "--until", "reward")))
    )
    classifier["higher_is"] = "worse"
    done = train(tmp_path, config, "--until", "reward")
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((Path(done.stdout.strip()) / "accuracy.json").read_text())
    assert accuracy["low"] > 0.8


def test_prompts_alone_and_a_harm_classifier_make_the_worst_of_n_safer_if_its_sign_is_right(
    bundle: Bundle, harm_classifier: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text((bundle.policy().evaluation / "prompts.jsonl").read_text())
    ctrl = on_base(bundle)["ctrl"] | {"steps": 6, "lora": None}
    judged = {}
    for sign in ("worse", "better"):
        config = on_base(
            bundle,
            policy=sign,
            transformation="identity",  # learnt fastest
            data={"prompts": {"paths": [str(prompts)], "held_out": 18}},
            reward={"classifiers": [{"path": str(harm_classifier), "higher_is": sign}]},
            ctrl=ctrl,
        )
        done = train(tmp_path, config)
        assert done.returncode == 0, done.stderr
        made = done.stdout.strip()
        assert "which no held-out comparison has checked" in (Path(made) / "README.md").read_text()
        request = Request(
            Path(made), None, None, None, 16, (4,), "helpdesk", None, engine="transformers", seed=1, plot=None
        )
        [row] = [row for row in evaluate_bundle(request).decoded if row.procedure == "worst-of-4"]
        judged[sign] = row.judge_policy.value - row.judge_reference.value
    assert judged["worse"] > 0 > judged["better"]


def test_a_model_that_is_not_there_is_refused_in_one_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = on_base(bundle, model={"base": {"path": "nowhere/at-all", "positions": 64}})
    line = last_line(train(tmp_path, config))
    assert line.startswith("infalign: model.base.path: got 'nowhere/at-all'"), line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"base": {"path": "{reference}", "positions": 64, "pad_token": "<|end|>"}}},
            "model.base.pad_token: got '<|end|>', accepted: a padding token that is not the end token",
        ),
        (
            {"model": {"base": {"path": "{reference}", "positions": 64, "pad_token": "<|none|>"}}},
            "model.base.pad_token: got '<|none|>', accepted: a token in the vocabulary",
        ),
        (
            {"model": {"base": {"path": "{reference}", "positions": 64, "end_token": "<|user|>"}}},
            "model.base.end_token: got '<|user|>', accepted: the token that the chat template ends a turn with",
        ),
        (
            {"model": {"base": {"path": "{reference}", "positions": 64, "chat_template": "missing.jinja"}}},
            "model.base.chat_template: got 'missing.jinja', accepted: a file with a Jinja template",
        ),
        ({"model": {"base": {"path": "{bare}", "positions": 64}}}, "model.base.chat_template: got None"),
        ({"model": {"base": {"path": "{reference}", "positions": 1 << 20}}}, "model.base.positions: got 1048576"),
        (
            {"reward": {"classifiers": [{"path": "{reference}/nothing", "higher_is": "better"}]}},
            "reward.classifiers[nothing].path: got",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    bare = tmp_path / "bare"
    tokenizer = AutoTokenizer.from_pretrained(bundle.reference)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    text = json.dumps(on_base(bundle, **change)).replace("{reference}", str(bundle.reference))
    config = json.loads(text.replace("{bare}", str(bare)))
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path))
    with pytest.raises(InfAlignError) as refusal:
        infalign.main(["train", write_config(tmp_path, config), "--until", "reward"], standalone_mode=False)
    assert str(refusal.value).startswith(message)


def test_vllm_and_transformers_agree_on_the_logits_of_an_adapter(joined: Bundle) -> None:
    """The last here: vLLM changes the process that it runs in, which the trainings above must not meet."""
    from training.vllm_sampler import VllmSampler

    chosen = joined.policy("worst")
    law = SamplingLaw(max_tokens=64)
    policy, reference = load_pair(chosen.directory, joined.reference, law)
    messages = [{"role": "user", "content": ASKED}]
    prompt = tokenise(policy.tokenizer, render_prompt(policy.tokenizer, messages))
    responses = policy.draw([messages] * 4, 0)
    ours = scored(policy, prompt, responses)
    assert not torch.allclose(ours, scored(reference, prompt, responses), atol=1e-3)

    engine = VllmSampler.load(joined.reference, law, chosen.directory)
    try:
        theirs = vllm_scored(engine, prompt, responses)
    finally:
        engine.close()
    assert torch.allclose(ours, theirs, atol=1e-3)


def scored(sampler: Any, prompt: list[int], responses: Sequence[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return log_probabilities(sampler.model, sampler.tokenizer, [prompt] * len(responses), responses)


def vllm_scored(sampler: Any, prompt: list[int], responses: Sequence[list[int]]) -> torch.Tensor:
    from vllm import SamplingParams, TokensPrompt

    found = []
    for response in responses:
        asked = TokensPrompt(prompt_token_ids=[*prompt, *response])
        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0)
        [output] = sampler.engine.generate([asked], parameters, use_tqdm=False, lora_request=sampler.adapter)
        places = zip(response, output.prompt_logprobs[len(prompt) :], strict=True)
        found.append(sum(place[token].logprob for token, place in places))
    return torch.tensor(found)
