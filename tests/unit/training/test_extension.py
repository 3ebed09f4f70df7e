"""Bundles of models that exist, made larger: further prompts are calibrated, adapters are put in."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model

from infalign import InvalidValue, read_bundle
from infalign.cli import infalign
from tests.tiny import tiny_job
from training.models import read_causal


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy and a reward model; and an adapter of the policy, and one of another model."""
    folder = tiny_job(tmp_path_factory.mktemp("models"), samples=1, max_tokens=1).reference.parent
    for name, targets in (("adapter", ["q_proj"]), ("other", ["q_proj", "v_proj"])):
        model = get_peft_model(read_causal(folder / "reference"), LoraConfig(r=2, target_modules=targets))
        model.save_pretrained(str(folder / name))
    config = json.loads((folder / "other" / "adapter_config.json").read_text())
    (folder / "other" / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["k_proj"]}))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str) -> str:
    """What a command writes; an error is raised."""
    done = CliRunner().invoke(infalign, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def make(models: Path, *arguments: str) -> None:
    options = ["--policy", str(models / "reference"), "--engine", "transformers", "--samples", "4", "--max-tokens", "5"]
    run("bundle", *options, "--reward", str(models / "reward"), "--name", "mine", *arguments)


def write_prompts(file: Path, *prompts: str) -> str:
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(file)


def test_further_prompts_are_calibrated_once(models: Path, home: Path, tmp_path: Path) -> None:
    make(models, "--prompts", write_prompts(tmp_path / "old.jsonl", "why", "how"))
    before = read_bundle(home / "bundles" / "mine")
    new = write_prompts(tmp_path / "new.jsonl", "a b", "why", "c d", "a b", "e" * 70)
    options = ("--engine", "transformers", "--output", str(tmp_path / "larger"))
    output = run("calibrate", "mine", new, *options)
    assert "prompts: 3 left out: " in output
    for reason in ("calibrated already (1)", "repeated (1)", "prompt too long (1)"):
        assert reason in output
    larger = read_bundle(tmp_path / "larger")
    assert len(before.table) == len(read_bundle(before.path).table) == 2
    assert (len(larger.table), larger.calibration.prompts, larger.table.keys[:2]) == (4, 4, before.table.keys)
    assert np.array_equal(larger.table.rewards[:2], before.table.rewards)
    assert larger.policy().is_reference
    assert larger.examples == before.examples
    shards = list((home / "runs" / "calibrate").glob("*/*.jsonl"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    run("calibrate", "mine", new, *options)
    assert [shard.stat().st_mtime_ns for shard in shards] == times, "what was drawn is not drawn again"
    assert np.array_equal(read_bundle(tmp_path / "larger").table.rewards, larger.table.rewards)


def test_a_file_without_a_new_prompt_is_refused(models: Path, tmp_path: Path) -> None:
    old = write_prompts(tmp_path / "old.jsonl", "why")
    make(models, "--prompts", old)
    with pytest.raises(InvalidValue, match=r"PROMPTS: got .*accepted: at least one prompt that the bundle has not"):
        run("calibrate", "mine", old, "--engine", "transformers")


def test_a_function_of_a_bundle_runs_only_if_it_is_trusted(models: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "old.jsonl", "why")
    make(models, "--prompts", prompts, "--harm", "function:tests.reward_functions:length")
    new = write_prompts(tmp_path / "new.jsonl", "how")
    with pytest.raises(InvalidValue, match=r"--trust-rewards, to run .*: length \(function tests"):
        run("calibrate", "mine", new, "--engine", "transformers")
    run("calibrate", "mine", new, "--engine", "transformers", "--trust-rewards")


def test_adapters_are_served_on_the_policy(models: Path, home: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "old.jsonl", "why")
    adapters = ("--adapter", f"kind={models / 'adapter'}", "--adapter", str(models / "adapter"))
    make(models, "--prompts", prompts, *adapters)
    bundle = read_bundle(home / "bundles" / "mine")
    assert list(bundle.policies) == ["kind", "adapter"]
    assert all(policy.is_adapter and policy.record.transformation is None for policy in bundle.policies.values())
    run("calibrate", "mine", write_prompts(tmp_path / "new.jsonl", "how"), "--engine", "transformers")
    assert list(read_bundle(bundle.path).policies) == ["kind", "adapter"]


def test_adapters_that_were_not_aligned_are_joined(models: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "old.jsonl", "why")
    for name in ("one", "two"):
        adapter = ("--adapter", f"{name}={models / 'adapter'}", "--output", str(tmp_path / name))
        make(models, "--prompts", prompts, *adapter)
    run("join", str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "both"))
    assert list(read_bundle(tmp_path / "both").policies) == ["one", "two"]
    assert "| two | standard | nothing |" in (tmp_path / "both" / "README.md").read_text()


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (("--adapter", "{models}/reference"), "--adapter: got .*accepted: the directory of a LoRA adapter"),
        (("--adapter", "a b={models}/adapter"), "--adapter: got .*accepted: NAME=DIR"),
        (("--adapter", "x={models}/adapter", "--adapter", "x={models}/adapter"), "--adapter: got .*accepted: NAME=DIR"),
        (("--adapter", "{models}/other"), "adapter: got .*accepted: an adapter that was made for its model"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(
    models: Path, tmp_path: Path, adapters: tuple[str, ...], message: str
) -> None:
    prompts = write_prompts(tmp_path / "old.jsonl", "why")
    with pytest.raises(InvalidValue, match=message):
        make(models, "--prompts", prompts, *(adapter.format(models=models) for adapter in adapters))
