"""A policy and its rewards, aligned by their names, from models of a few thousand weights."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infalign import InvalidValue, read_bundle
from infalign.cli import infalign
from server.decoding.rank_laws import predict_ranks
from tests.tiny import tiny_job

SHORT = ("--samples", "4", "--max-tokens", "5", "--engine", "transformers")
QUICK = ("--set", "ctrl.steps=2", "--set", "ctrl.generations=2", "--set", "ctrl.lora={rank: 2, alpha: 4}")
LENGTH = ("--reward", "function:tests.reward_functions:length")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job(tmp_path_factory.mktemp("models"), samples=1, max_tokens=1).reference


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of a dozen prompts, fewer than a step of the shipped config takes after some are held out."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{letter} why"}) + "\n" for letter in "abcdefghijkl"))
    return file


def call(command: str, *arguments: object) -> str:
    """What the command writes; an error is raised."""
    done = CliRunner().invoke(infalign, [command, *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_policy_is_aligned_by_names_and_reuses_what_bundle_made(policy: Path, home: Path, prompts: Path) -> None:
    names = ("--policy", policy, *LENGTH, "--prompts", prompts, *SHORT)
    call("bundle", *names)
    plan = call("train", *names, *QUICK, "--plan")
    states = dict(line.split()[:2] for line in plan.splitlines()[1:6])
    assert states == dict.fromkeys(("data", "sft", "reward", "rollouts", "calibrate"), "reused"), plan
    output = call("train", *names, *QUICK, "--set", "evaluation.draws=8")
    assert output.count("  reused") == 5, output
    aligned = read_bundle(home / "bundles" / "reference-best-of-4")
    assert f"{aligned.path}\n" in output
    part = aligned.policy()
    assert (part.name, part.is_adapter, part.record.procedure) == ("reference-best-of-4", True, "best-of-4")
    assert part.record.transformation == "optimal"
    assert {"kl", "win_rate_best-of-4"} <= part.record.measured.keys()
    assert (aligned.table.samples, len(aligned.table)) == (4, 12)
    as_it_is = read_bundle(home / "bundles" / "reference")
    assert as_it_is.policy().is_reference, "the bundle of the policy as it is stays"
    assert as_it_is.manifest.calibration == aligned.manifest.calibration


def test_names_replace_what_a_config_says(policy: Path, home: Path, prompts: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "{name: mine, policy: other, seed: 0, procedure: worst-of-2, transformation: identity, "
        "data: {prompts: {paths: [nowhere.jsonl]}}, model: {base: {path: no/where, positions: 8}}, "
        "reward: {classifiers: [{path: no/where, higher_is: better}]}, rollouts: {samples: 3, max_tokens: 5}, "
        "ctrl: {target_kl: 1, learning_rate: 0.001, prompts: 2, generations: 2, steps: 1}}"
    )
    from training.cli import _make_config
    from training.named_models import NamedModels

    models = NamedModels(policy=str(policy), rewards=("function:tests.reward_functions:length",), prompts=prompts)
    made = _make_config(str(config), models, ("rollouts.samples=4",), ())
    assert (made.name, made.policy_name) == ("reference", "reference-worst-of-2")
    assert (made.model.base and made.model.base.path, made.model.positions) == (str(policy), 64)
    assert made.data.files.paths == (str(prompts),)
    assert [reward.name for reward in made.reward.models] == ["length"]
    assert (made.rollouts.samples, made.rollouts.max_tokens, made.rollouts.engine) == (4, 5, "transformers")
    kept = _make_config(str(config), NamedModels(samples=6, name="third"), (), ())
    assert (kept.name, kept.policy_name, kept.rollouts.samples) == ("mine", "third", 6)
    assert kept.data.files.paths == ("nowhere.jsonl",)


def test_an_evaluation_may_be_small_or_left_for_later(policy: Path, home: Path, prompts: Path) -> None:
    names = ("--policy", policy, *LENGTH, "--prompts", prompts, *SHORT, *QUICK)
    assert "evaluate" not in call("train", *names, "--set", "evaluation=null", "--plan")
    call("train", *names, "--set", "evaluation=null")
    bundle = read_bundle(home / "bundles" / "reference-best-of-4")
    record = bundle.policy().record
    assert record.measured.keys() == {"kl"}, "of the one prompt that the policy was settled on"
    assert predict_ranks(record, samples=4).sum() == pytest.approx(1)
    card = (bundle.path / "README.md").read_text()
    assert "## Not measured" in card
    assert "on the 2 test prompts" in card
    assert "win_rate.svg" not in card
    arguments = ("--draws", 8, "--engine", "transformers", "--trust-rewards", "--json")
    later = json.loads("{" + call("evaluate", bundle.path, *arguments).partition("{")[2])
    assert (later["prompts"], later["draws"]) == (2, 8)

    output = call("train", *names, "--set", "evaluation={draws: 8, prompts: 1}")
    assert output.count("  reused") == 6, output
    bundle = read_bundle(home / "bundles" / "reference-best-of-4")
    figures = json.loads((bundle.policy().evaluation / "figures.json").read_text())
    assert (figures["prompts"], figures["draws"]) == (1, 8)
    assert "On 1 test prompts" in (bundle.path / "README.md").read_text()
    with pytest.raises(InvalidValue, match=r"evaluation\.draws: got 4, accepted: enough for best-of-8"):
        call("train", *names, "--set", "evaluation.draws=4")
    with pytest.raises(InvalidValue, match="evaluation without ctrl"):
        call("bundle", *names[:-6], "--set", "evaluation.draws=8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "CONFIG: got 'nothing', accepted: a config such as demo, or --policy, --reward and --prompts"),
        (("adapter",), "--policy: got 'none', accepted: the model to align"),
        (("--policy", "{policy}"), "--reward: got 'none', accepted: at least one --reward or --harm"),
        (("--policy", "{policy}", *LENGTH), '--prompts: got \'none\', .* 8 prompts .*{"prompt": "Why\\?"}'),
        (("--policy", "{policy}", *LENGTH, "--prompts", "nowhere.jsonl"), "nowhere.jsonl"),
        (("demo", "--positions", "64"), "--positions: got 64, accepted: nothing without --policy"),
        (("demo", "--rubric", "r.txt"), "--rubric: got 'r.txt', accepted: nothing without --reward or --harm"),
        (("demo", "--prompts", "p", "--data", "d"), "--data: got 'd', accepted: --data or --prompts, not both"),
        (("demo", "--prompts", "p"), "data.prompts has no answers for sft"),
    ],
)
def test_what_is_missing_is_named(policy: Path, home: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        call("train", *(argument.replace("{policy}", str(policy)) for argument in arguments))


def test_too_few_prompts_to_hold_some_out_are_refused(policy: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("".join(f'{{"prompt": "{letter}"}}\n' for letter in "abcdefg"))
    message = "data: got '7 train, 0 validation, 0 test', accepted: prompts in each split; give at least 8"
    with pytest.raises(InvalidValue, match=message):
        call("train", "--policy", policy, *LENGTH, *SHORT, "--prompts", tmp_path / "few.jsonl")
    call("bundle", "--policy", policy, *LENGTH, *SHORT, "--prompts", tmp_path / "few.jsonl")
    scorer = ("--set", "scorer={learning_rate: 0.001, batch: 4}")
    with pytest.raises(InvalidValue, match="scorer: got '7 train, 0 validation', accepted: a run with train and valid"):
        call("bundle", "--policy", policy, *LENGTH, *SHORT, *scorer, "--prompts", tmp_path / "few.jsonl")
