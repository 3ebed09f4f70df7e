"""A bundle is served, and evaluated, only by reward models that give the rewards it was calibrated with."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign import Bundle, NewPolicy, read_bundle, write_bundle
from infalign.bundle import SHARED_PARTS
from infalign.reproduction import RewardExample, save_examples
from tests.commands import run_here
from tests.integration.conftest import INFALIGN, launched, reproduction_in
from training.rollouts import read_rollouts
from training.scorer import Scorer


@dataclass(frozen=True)
class Trained:
    """A tiny bundle, and the home it was trained in."""

    home: Path
    bundle: Bundle


@pytest.fixture(scope="module")
def trained(tiny_home: Path) -> Trained:
    return Trained(tiny_home, read_bundle(tiny_home / "bundle"))


def with_examples(bundle: Bundle, target: Path, examples: list[RewardExample]) -> Path:
    """The same bundle with other scored responses."""
    calibration = target.with_name("calibration")
    shutil.copytree(bundle.path / "calibration", calibration)
    save_examples(calibration, examples)
    policy, manifest = bundle.policy(), bundle.manifest
    write_bundle(
        target,
        {part: bundle.path / part for part in SHARED_PARTS} | {"calibration": calibration},
        {policy.name: NewPolicy(policy.directory, policy.evaluation, False, policy.record)},
        "# card\n",
        name=manifest.name,
        created=manifest.created,
        sampling=manifest.sampling,
        libraries=manifest.libraries,
    )
    return target


@pytest.fixture
def miscalibrated(trained: Trained, tmp_path: Path) -> Path:
    """A bundle that another reward model calibrated: the third response had another reward."""
    examples = list(trained.bundle.examples)
    other = {name: reward + 5 for name, reward in examples[2].rewards.items()}
    examples[2] = examples[2].model_copy(update={"rewards": other})
    return with_examples(trained.bundle, tmp_path / "miscalibrated", examples)


def test_the_scored_responses_are_rollouts_from_the_shortest_to_the_longest(trained: Trained) -> None:
    [directory] = trained.home.glob("runs/demo/rollouts-*")
    rollouts = list(read_rollouts(directory))
    known = {
        (row.prompt[-1]["content"], response): (len(tokens), reward)
        for row in rollouts
        for response, tokens, reward in zip(row.responses, row.tokens, row.reward_matrix[:, 0], strict=True)
    }
    found = [known[example.prompt[-1]["content"], example.response] for example in trained.bundle.examples]
    assert len(found) == 8
    assert [example.rewards["reward"] for example in trained.bundle.examples] == [reward for _, reward in found]
    lengths = {length for length, _ in known.values()}
    assert {min(lengths), max(lengths)} <= {length for length, _ in found}
    end = AutoTokenizer.from_pretrained(trained.bundle.reference).eos_token_id
    if any(tokens[-1] != end for row in rollouts for tokens in row.tokens):
        assert max(lengths) == trained.bundle.manifest.sampling.max_tokens


def test_vllm_gives_the_rewards_in_another_precision_and_says_how_exactly(trained: Trained, tmp_path: Path) -> None:
    """In the precision that the bundle was calibrated in, test_serving.py has it."""
    log = tmp_path / "log"
    with launched(log, str(trained.bundle.path), "--dtype", "bfloat16"):
        pass
    level, difference = reproduction_in(log)
    assert level == "WARNING"
    assert 1e-4 < difference <= trained.bundle.reproductions["reward"].tolerance


def test_a_bundle_that_another_reward_model_calibrated_is_not_served(miscalibrated: Path) -> None:
    done = subprocess.run(
        [INFALIGN, "serve", str(miscalibrated), "--port", "0"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert "the engines did not start: the reward model reward does not give the rewards that" in line
    assert "Response 3 of 8 in calibration/examples.jsonl has " in line
    assert "The largest difference is 5, accepted " in line
    assert " INFO infalign.server: ready" not in done.stderr


def evaluate(*arguments: str) -> str:
    """The one line that says why a bundle is not evaluated."""
    options = ("--engine", "transformers", "--draws", "8", "-n", "2", "--limit", "2")
    done = run_here("evaluate", *arguments, *options)
    assert done.returncode == 2, done.stderr
    return done.stderr.replace("\r", "\n").strip().splitlines()[-1]


def test_a_bundle_that_another_reward_model_calibrated_is_not_evaluated(miscalibrated: Path) -> None:
    line = evaluate(str(miscalibrated))
    assert line.startswith("infalign: the reward model reward does not give the rewards that the bundle was calibrated")


def test_a_judge_with_two_outputs_is_refused_until_one_is_named(trained: Trained, tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    model = AutoModelForSequenceClassification.from_pretrained(trained.bundle.reward_model)
    head = model.score.weight.detach()
    model.score = torch.nn.Linear(head.shape[1], 2, bias=False)
    model.score.weight.data = torch.cat([head, -head])
    model.config.num_labels = 2
    model.save_pretrained(judge)
    AutoTokenizer.from_pretrained(trained.bundle.reward_model).save_pretrained(judge)
    path = str(trained.bundle.path)
    assert evaluate(path, "--judge", str(judge)).startswith(
        f"infalign: judge: got '{judge}', accepted: a classifier with"
    )
    assert "--judge-output: got 0, accepted: a judge to go with it" in evaluate(path, "--judge-output", "0")
    prompt = [{"role": "user", "content": "Why?"}]
    assert Scorer.load(trained.bundle.reward_model).score([prompt], ["So."])[0] != 0
    options = ("--engine", "transformers", "--draws", "8", "-n", "2", "--limit", "2", "--json")
    figures = []
    for output in ("0", "1"):
        done = run_here("evaluate", path, "--judge", str(judge), "--judge-output", output, *options)
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(done.stdout)["decoded"][0])
    assert figures[0]["judge_policy"]["value"] == pytest.approx(-figures[1]["judge_policy"]["value"])
    assert figures[0]["judged_win_rate"]["value"] == pytest.approx(figures[0]["win_rate"]["value"])
