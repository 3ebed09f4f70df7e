"""Two reward models in one run: trained with, bundled, evaluated, and served by real vLLM."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign import Bundle, read_bundle
from infalign.errors import BundleMismatch
from infalign.files import digest, hash_files, reward_models
from infalign.templates import prompt_key, render_prompt
from tests.commands import run_here
from tests.integration.conftest import serving
from tests.training_runs import command, copy_stages
from training.adoption import turn_sign
from training.rollouts import read_rollouts
from training.scorer import Scorer

RESPONSES = ["Check the brakes.", "Ask a friend.", "No.", ""]
WEIGHTS = {"harm": 2.0, "helpful": 1.0}


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    copy_stages(tiny_home, home, "data", "sft")
    return home


@pytest.fixture(scope="module")
def harm(home: Path, tiny_home: Path) -> Path:
    """A classifier made of a tiny reward model with another head, that scores harm."""
    trained = read_bundle(tiny_home / "bundle").reward_model
    shutil.copytree(trained, home / "harm")
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    torch.manual_seed(0)
    with torch.no_grad():
        model.score.weight += model.score.weight.std() * torch.randn_like(model.score.weight)
        model.score.weight *= 100  # another scale, which must not matter
    turn_sign(model)
    model.save_pretrained(home / "harm")
    return home / "harm"


def rewarded(harm: Path, weight: float = WEIGHTS["harm"]) -> list[str]:
    """The options that make a run's reward of one that it trains and the classifier."""
    classifier = {"path": str(harm), "higher_is": "worse", "weight": weight}
    return ["--set", "reward.train.name=helpful", "--set", f"reward.classifiers={json.dumps([classifier])}"]


@pytest.fixture(scope="module")
def bundle(home: Path, harm: Path) -> Bundle:
    done = run_here(*command(home / "bundle")[1:], *rewarded(harm), INFALIGN_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reused") == 2  # data and sft: the run has the same name
    return read_bundle(home / "bundle")


def test_the_bundle_holds_both_with_their_weights(bundle: Bundle, home: Path) -> None:
    assert list(reward_models(bundle.reward_model)) == ["harm", "helpful"]
    assert bundle.calibration.reward_models is not None
    assert {name: model.weight for name, model in bundle.calibration.reward_models.items()} == WEIGHTS
    measured = bundle.policy().record.measured
    assert {"reward_accuracy_harm", "reward_accuracy_helpful", "win_rate_best-of-4"} <= measured.keys()
    card = (bundle.path / "README.md").read_text()
    assert "| harm | 2 | 0." in card
    stored = next(read_rollouts(next((home / "runs" / "demo").glob("rollouts-*"))))
    assert list(stored.rewards) == ["harm", "helpful"]
    assert stored.reward_matrix.shape == (4, 2)
    assert np.array_equal(bundle.combination.tables[0].rewards[0].astype(np.float32), stored.rewards["harm"])
    assert bundle.table.rewards.mean() == pytest.approx(0.5)


def test_a_high_reward_is_good(bundle: Bundle, harm: Path) -> None:
    asked = [[{"role": "user", "content": "My bicycle has weak brakes."}]] * len(RESPONSES)
    outputs = Scorer.load(harm).score(asked, RESPONSES)
    assert outputs.std() > 0
    assert Scorer.load(bundle.reward_model / "harm").score(asked, RESPONSES) == pytest.approx(-outputs)


def test_a_part_of_another_bundle_is_found_out_by_name(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    config = copy / "reward" / "harm" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"revision": 2}))
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"] = hash_files(copy)
    manifest["reward_model"] = digest(manifest["files"], "reward")
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleMismatch, match="the calibration was made for another reward model harm"):
        read_bundle(copy)


def test_a_bundle_of_two_is_evaluated(bundle: Bundle) -> None:
    arguments = ("--engine", "transformers", "--draws", "8", "-n", "2", "--limit", "4", "--json")
    done = run_here("evaluate", str(bundle.path), *arguments)
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads(done.stdout)["decoded"][0]["win_rate"]["value"] <= 1


def test_vllm_serves_both_as_one(bundle: Bundle, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundle.reference)
    prompts = (bundle.policy().evaluation / "prompts.jsonl").read_text().splitlines()
    known = json.loads(prompts[0])["prompt"]
    unknown = [{"role": "user", "content": "Who are you?"}]
    with serving(tmp_path / "log", str(bundle.path)) as url:
        answers = {
            scope: httpx.post(f"{url}/v1/rewards", json={"messages": asked, "responses": RESPONSES}, timeout=120).json()
            for scope, asked in (("prompt", known), ("global", unknown))
        }
        body = {"messages": known, "n": 8, "seed": 1, "return_candidates": True}
        best = httpx.post(f"{url}/v1/best-of-n", json=body, timeout=120).json()
        text = httpx.get(f"{url}/metrics").text
    for scope, asked in (("prompt", known), ("global", unknown)):
        assert answers[scope]["calibration"]["scope"] == scope
        check(bundle, prompt_key(render_prompt(tokenizer, asked)), answers[scope]["rewards"])
        for name in WEIGHTS:
            expected = Scorer.load(bundle.reward_model / name).score([asked] * len(RESPONSES), RESPONSES)
            assert [row["rewards"][name] for row in answers[scope]["rewards"]] == pytest.approx(expected, rel=1e-3)
    check(bundle, prompt_key(render_prompt(tokenizer, known)), best["candidates"])
    assert best["selected"][0]["reward"] == max(candidate["reward"] for candidate in best["candidates"])
    assert "infalign_engines_up 1.0" in text


def check(bundle: Bundle, key: str, rows: list[dict[str, Any]]) -> None:
    """Rewards and quantiles of an answer are those of the bundle's combination."""
    raw = [[row["rewards"]["harm"], row["rewards"]["helpful"]] for row in rows]
    combined = bundle.combination.combine([key] * len(rows), raw)
    assert [row["reward"] for row in rows] == pytest.approx(combined)
    quantiles = bundle.combination.table.quantile([key] * len(rows), combined)
    assert [row["quantile"] for row in rows] == pytest.approx(quantiles)
