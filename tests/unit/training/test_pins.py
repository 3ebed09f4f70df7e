"""Models of a hub that is only a cache on disk: each is loaded at one revision, which the bundle records."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from infalign import InvalidValue, read_bundle
from infalign.bundling import rewrite_bundle
from infalign.cli import infalign
from infalign.manifest import Origin
from tests.tiny import tiny_job

OLD, NEW = 40 * "a", 40 * "b"
"""Two revisions of each model. The branch main is the new one, and the tag v1 the old one."""


def publish(model: Path, cache: Path, name: str) -> None:
    """Put two revisions of a model into a cache of the hub. The old one has a shorter context."""
    target = cache / "hub" / f"models--{name.replace('/', '--')}"
    for revision, ref in ((OLD, "v1"), (NEW, "main")):
        shutil.copytree(model, target / "snapshots" / revision)
        (target / "refs").mkdir(exist_ok=True)
        (target / "refs" / ref).write_text(revision)
    config = target / "snapshots" / OLD / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 48}))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the models org/policy and org/reward are in the cache of the hub, which is not asked."""
    job = tiny_job(tmp_path / "models", samples=1, max_tokens=1)
    publish(job.reference, tmp_path / "cache", "org/policy")
    publish(job.reward, tmp_path / "cache", "org/reward")
    shutil.rmtree(tmp_path / "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))
    (tmp_path / "prompts.jsonl").write_text('"why"\n"how"\n')
    return tmp_path


def call(home: Path, command: str, *arguments: str) -> str:
    """What a command writes; an error is raised."""
    options = ["--engine", "transformers", "--samples", "2", "--max-tokens", "4"]
    options += ["--prompts", str(home / "prompts.jsonl")]
    done = CliRunner().invoke(infalign, [command, *arguments, *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_model_is_read_at_one_revision_which_the_bundle_names(home: Path, tmp_path: Path) -> None:
    call(home, "bundle", "--policy", "org/policy", "--reward", "org/reward")
    bundle = read_bundle(home / "home" / "bundles" / "policy")
    assert bundle.calibration.model_names == ["reward"]
    assert bundle.manifest.origins == {
        "reference": Origin(model="org/policy", revision=NEW),
        "reward": Origin(model="org/reward", revision=NEW),
    }
    card = (bundle.path / "README.md").read_text()
    assert f"`org/policy@{NEW}`" in card
    assert f"`org/reward@{NEW}`" in card
    copied = rewrite_bundle(bundle, tmp_path / "copy")
    assert copied.manifest.origins == bundle.manifest.origins

    judges = "[{path: org/policy@v1, name: judge, rubric: '{response}?', scores: {a: 1, b: 2}}]"
    call(home, "bundle", "--policy", "org/policy@v1", "--reward", "org/reward", "--set", f"reward.judges={judges}")
    old = read_bundle(bundle.path)  # the name of a bundle does not say the revision
    assert old.manifest.reference != bundle.manifest.reference
    assert json.loads((old.reference / "config.json").read_text())["max_position_embeddings"] == 48
    assert {part: origin.revision for part, origin in old.manifest.origins.items()} == {
        "reference": OLD,
        "reward/judge": OLD,
        "reward/reward": NEW,
    }


def test_a_branch_that_moves_makes_the_stages_run_again(home: Path) -> None:
    arguments = ("bundle", "--policy", "org/policy", "--reward", "org/reward")
    call(home, *arguments)
    assert call(home, *arguments).count("  reused") == 5
    (home / "cache" / "hub" / "models--org--reward" / "refs" / "main").write_text(OLD)
    assert call(home, *arguments).count("  reused") == 2, "data and the reference stay"


def test_a_revision_that_is_not_there_is_named(home: Path) -> None:
    message = "--policy: got 'org/policy@v2', .*the local cache holds org/policy, org/reward"
    with pytest.raises(InvalidValue, match=message):
        call(home, "bundle", "--policy", "org/policy@v2", "--reward", "org/reward")
    with pytest.raises(InvalidValue, match=r"reward.classifiers\[reward\].path: got 'org/reward@v2', "):
        call(home, "bundle", "--policy", "org/policy", "--reward", "org/reward@v2")


def test_a_plan_does_without_a_model_that_cannot_be_had(home: Path) -> None:
    keys = ("--set", "name=x", "--set", "model={base: {path: no/where, positions: 48}}")
    output = call(home, "train", "adapter", "--reward", "org/reward@v2", "--plan", *keys)
    assert "until no/where is on this machine" in output
