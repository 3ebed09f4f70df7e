"""A bundle of models that exist, made by transformers of models of a few thousand weights."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infalign import InvalidValue, read_bundle
from infalign.cli import infalign
from infalign.files import reward_models
from infalign.rewards import check_trust, read_reference_judges
from tests.tiny import tiny_job


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = tiny_job(tmp_path_factory.mktemp("models"), samples=1, max_tokens=1)
    return job.reference.parent


def make(models: Path, *arguments: str) -> str:
    """What the command writes; an error is raised."""
    options = ["--policy", str(models / "reference"), "--engine", "transformers", "--samples", "4", "--max-tokens", "5"]
    done = CliRunner().invoke(infalign, ["bundle", *options, *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_policy_and_a_reward_make_a_bundle(models: Path, home: Path) -> None:
    output = make(models, "--reward", str(models / "reward"))
    bundle = read_bundle(home / "bundles" / "reference")
    assert f"{bundle.path}\n" in output
    assert "stage 5 of 6, calibrate" in output
    assert "data: 4 dropped: prompt too long (4)" in output, "of the project's own six, as this model is tiny"
    policy = bundle.policy()
    assert (policy.name, policy.is_reference, policy.record.measured) == ("reference", True, {})
    assert (len(bundle.table), bundle.table.samples, bundle.manifest.sampling.max_tokens) == (2, 4, 5)
    card = (bundle.path / "README.md").read_text()
    assert f"`{models / 'reference'}`" in card
    assert "each of 2 prompts" in card
    assert "The model was not aligned" in card
    assert make(models, "--reward", str(models / "reward")).count("  reused") == 5, "of six: the bundle is written anew"


def test_rewards_and_harms_are_combined_over_prompts_of_ones_own(models: Path, home: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{word}?"}) + "\n" for word in ("why", "how", "why")))
    rewards = [{"path": str(models / "reward"), "higher_is": sign, "name": sign} for sign in ("better", "worse")]
    arguments = ("--reward", str(models / "reward"), "--prompts", str(prompts), "--name", "two")
    make(models, *arguments, "--set", f"reward.classifiers={json.dumps(rewards)}")
    bundle = read_bundle(home / "bundles" / "two")
    assert (len(bundle.table), bundle.calibration.model_names) == (2, ["better", "worse"])
    for example in bundle.examples:
        assert example.rewards["better"] == pytest.approx(-example.rewards["worse"])


def test_a_judge_and_a_function_are_rewards_beside_a_classifier(models: Path, home: Path, tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("{response}?\n")
    scores = json.dumps([{"path": str(models / "reference"), "rubric": "{response}?", "scores": {"a": 1, "b": 2}}])
    arguments = ["--reward", str(models / "reward"), "--harm", "function:tests.reward_functions:length"]
    make(models, *arguments, "--name", "kinds", "--set", f"reward.judges={scores}")
    bundle = read_bundle(home / "bundles" / "kinds")
    assert bundle.calibration.model_names == ["length", "reference", "reward"]
    for example in bundle.examples:
        assert example.rewards["length"] == -len(example.response)
        assert 1 <= example.rewards["reference"] <= 2
    assert check_trust(reward_models(bundle.reward_model), trust=True)["length"].kind == "function"
    with pytest.raises(InvalidValue, match=r"--rubric: got .*accepted: a rubric only where a reward is a judge"):
        make(models, *arguments, "--rubric", str(rubric))


def test_the_reference_judges_its_own_answers(models: Path, home: Path, tmp_path: Path) -> None:
    judges = json.dumps([{"rubric": "{response}?", "scores": {"a": 1, "b": 2}, "name": "own"}])
    make(models, "--set", f"reward.reference_judges={judges}", "--reward", str(models / "reward"), "--name", "own")
    bundle = read_bundle(home / "bundles" / "own")
    assert bundle.calibration.model_names == ["own", "reward"]
    assert [file.name for file in (bundle.reward_model / "own").iterdir()] == ["reward.json"]
    assert all(1 < example.rewards["own"] < 2 for example in bundle.examples)
    directories = reward_models(bundle.reward_model)
    assert check_trust(directories, trust=False) == {}
    assert read_reference_judges(directories)["own"].rubric == "{response}?"
    added = tmp_path / "prompts.jsonl"
    added.write_text('{"prompt": "why"}\n')
    done = CliRunner().invoke(infalign, ["calibrate", str(bundle.path), str(added), "--engine", "transformers"])
    assert done.exit_code == 0, done.output
    assert len(read_bundle(bundle.path).table) == len(bundle.table) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reward", "judge:reference"), r"reward.reference_judges\[reference-judge\].rubric: .* at most 63"),
        (("--reward", "judge:http://127.0.0.1:9/v1"), "--reward: got .*accepted: judge:URL#MODEL"),
        (("--reward", "judge:http://127.0.0.1:9/v1#j"), r"reward.remote_judges\[j\]: got .*cannot be reached"),
        (("--harm", "function:"), "--harm: got 'function:', accepted: a reward, such as"),
        (("--reward", "function:nowhere"), "reward.functions.0.function: .*module:function"),
        (("--reward", "function:no_module:f"), "reward: got 'no_module:f', .*No module named 'no_module'"),
        (("--reward", "service:ftp://host"), "reward.services.0.url: .*an address such as"),
        (("--reward", "{models}/reward#1"), r"reward.classifiers\[reward\].label: got '1', .*0 \(LABEL_0\)"),
        (("--reward", "judge:{models}/reward"), r"reward.judges\[reward\].path: got .*a causal LM"),
        (("--reward", "judge:{models}/reference"), r"reward.judges\[reference\].path: .*its context is 64"),
    ],
)
def test_a_mistake_in_a_reward_is_named(models: Path, home: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        make(models, *(argument.format(models=models) for argument in arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--reward: got 'none', accepted: at least one --reward or --harm"),
        (("--reward", "{models}/reference"), r"reward.classifiers\[reference\].path: "),
        (("--harm", "{models}/nothing"), r"reward.classifiers\[nothing\].path: got .*accepted: a sequence classifier"),
        (("--reward", "{models}/reward", "--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--reward", "{models}/reward", "--positions", "128"), "model.base.positions: got 128, .* at most .* 64"),
        (("--reward", "{models}/reward", "--max-tokens", "64"), "data: got 'no train left'"),
        (("--reward", "{models}/reward", "--set", "ctlr=1"), "ctlr: .*did you mean ctrl"),
    ],
)
def test_a_mistake_is_named(models: Path, home: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        make(models, *(argument.format(models=models) for argument in arguments))


def test_a_policy_that_is_not_there_is_named(
    models: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidValue, match="--policy: got 'no/where', accepted: a causal LM, by directory or hub id"):
        make(models, "--reward", str(models / "reward"), "--policy", "no/where")
