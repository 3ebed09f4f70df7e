from pathlib import Path

import pytest
import yaml

from infalign import InvalidValue
from training.configs import ADAPTER, SHIPPED, load_config, make_config
from training.ctrl import make_transformation
from training.identity import Identities

LAUNCH = SHIPPED.parent / "launch"
HARM = "path: org/harm, higher_is: worse"
ON_BASE = "model={base: {path: x, positions: 64}}"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_read(path: Path) -> None:
    named = (
        "model={base: {path: x, positions: 64}}",
        f"reward={{classifiers: [{{{HARM}}}]}}",
        "data={prompts: {paths: [x]}}",
    )
    missing = ("name=x", *named) if path.stem == ADAPTER else ()
    assert load_config(path.stem, missing) == load_config(str(path), missing)


def test_overrides_reach_their_key() -> None:
    config = load_config("demo", ("ctrl.target_kl=1.5", "transformation=log", "seed=3"))
    assert (config.ctrl.target_kl, config.transformation, config.seed) == (1.5, "log", 3)


def test_a_policy_is_aligned_for_something_by_something() -> None:
    values = yaml.safe_load((SHIPPED / "demo.yaml").read_text())
    del values["procedure"]
    with pytest.raises(InvalidValue, match="ctrl needs procedure and transformation"):
        make_config(values)


def test_a_policy_may_be_aligned_for_a_mixture() -> None:
    config = load_config("demo", ("procedure=worst-of-4+2*best-of-4",))
    assert config.procedure == "2*best-of-4+worst-of-4"
    assert make_transformation(config.procedure, config.transformation, 0.5).span == pytest.approx(1)
    with pytest.raises(InvalidValue, match=r"procedure: .*standard\+best-of-4 or 2\*best-of-4\+worst-of-4"):
        load_config("demo", ("procedure=best-of-4+best",))


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((SHIPPED / "demo.yaml").read_text() + "crtl:\n  steps: 3\n")
    with pytest.raises(InvalidValue, match=r"crtl: .*did you mean ctrl"):
        load_config(str(path))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidValue, match="CONFIG: got"):
        load_config(str(path))


def test_data_files_replace_those_of_the_config(tmp_path: Path) -> None:
    data = load_config("hh-harmless", paths=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))).data
    assert (data.source, data.files.hub) == ("transcripts", None)
    assert data.files.paths == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    ("overrides", "objective"),
    [
        ((), "live"),
        (("transformation=log",), "fixed"),
        (("procedure=worst-of-4",), "fixed"),
        (("procedure=best-of-2+best-of-4",), "fixed"),
        (("ctrl.anneal=0.7",), "fixed"),
        (("ctrl.solver=rloo",), "fixed"),
        (("ctrl.objective=group",), "group"),
    ],
)
def test_the_objective_follows_the_transformation(overrides: tuple[str, ...], objective: str) -> None:
    config = load_config("demo", overrides)
    assert config.alignment.choose_objective(config.procedure, config.transformation) == objective


def test_reward_models_have_names_and_weights() -> None:
    harm = f"reward.classifiers=[{{{HARM}, weight: 0.5}}, {{path: 'org/a b', higher_is: better, name: helpful}}]"
    reward = load_config("demo", (harm,)).reward
    assert reward.weights == {"trained": 1, "harm": 0.5, "helpful": 1}
    heavier = load_config("demo", (harm.replace("0.5", "2"),)).reward
    # the models stay, what they are combined to does not
    assert Identities(Path("/")).encode(heavier) == Identities(Path("/")).encode(reward)
    assert heavier.weights != reward.weights


@pytest.mark.parametrize(
    ("name", "overrides", "paths", "message"),
    [
        ("demo", (), ("x.jsonl",), "--data: got 'x.jsonl', accepted: no files: this config's data is generated"),
        (
            "demo",
            ("data.helpdesk=null",),
            (),
            "data: .*exactly one of helpdesk, .*prompts; got none",
        ),
        ("demo", ("data.preferences={paths: [x], held_out: 3}",), (), "exactly one of .* got .*helpdesk.*preferences"),
        ("demo", ("data.helpdesk.answer=3",), (), "data.helpdesk.answer: got 3, .*did you mean answers"),
        ("hh-harmless", ("data.transcripts.hub=null",), (), "give paths .* or hub: exactly one"),
        ("hh-harmless", ("data.transcripts.held_out=0",), (), "data.transcripts.held_out: got 0"),
        ("llama-8b-lora", ("ctrl.lora=null",), (), "ctrl cannot train weights of bfloat16.* give ctrl.lora"),
        (
            "demo",
            ("ctrl.solver=regression", "ctrl.anneal=0.7"),
            (),
            "anneal is for a fixed Φ that is learned on-policy, not for regression",
        ),
        ("demo", ("transformation=log", "ctrl.objective=live"), (), "live maximises .* not transformation=log: set tr"),
        ("demo", ("ctrl.objective=live", "ctrl.anneal=0.5"), (), "^ctrl.anneal: got 0.5, accepted: anneal is"),
        ("demo", ("ctrl.objective=live", "ctrl.solver=rloo"), (), "^ctrl: got {'objective': 'live', 'solver': 'rloo'}"),
        (
            "demo",
            ("ctrl.engine=vllm", "ctrl.solver=rloo"),
            (),
            "^ctrl: .* engine=vllm is for the solver ctrl, not for rloo",
        ),
        ("demo", ("ctrl.objective=group", "ctrl.generations=2"), (), "at least the 4 of best-of-4; got 2"),
        ("demo", ("ctrl.solver=rloo", "ctrl.generations=1"), (), "generations must be at least 2 for rloo; got 1"),
        ("demo", ("ctrl.prompts=1", "ctrl.generations=1"), (), "prompts and generations are both 1"),
        (
            "demo",
            ("transformation=gaussian", "ctrl.anneal=0.5"),
            (),
            "gaussian is not annealed, .* got ctrl.anneal=0.5",
        ),
        ("demo", ("ctrl.objective=group", "procedure=best-of-poisson(4)"), (), r"not for best-of-poisson\(4\)"),
        ("demo", ("procedure=best-of-x",), (), "^procedure: got 'best-of-x', accepted: standard, best-of-N"),
        ("demo", ("sft=null",), (), "a model from scratch needs sft"),
        ("demo", ("model.scratch=null",), (), "model: .*give scratch, or base"),
        ("demo", ("reward.train=null",), (), "reward: .*give at least one of train, classifiers"),
        ("demo", ("data={prompts: {paths: [x], held_out: 3}}",), (), "data.prompts has no answers for sft"),
        ("demo", (ON_BASE, "data={prompts: {paths: [x], held_out: 3}}", "sft=null"), (), "no comparisons for reward"),
        ("demo", ("reward.classifiers=[{path: x, higher_is: good}]",), (), r"classifiers\.0\.higher_is: .*or 'worse'"),
        (
            "demo",
            ("reward.classifier={path: x, higher_is: worse}",),
            (),
            "reward.classifier: .*did you mean classifiers",
        ),
        (
            "demo",
            ("reward.classifiers=[{higher_is: worse}]",),
            (),
            r"reward.classifiers.0.path: .*this field is required",
        ),
        (
            "demo",
            (f"reward.classifiers=[{{{HARM}, weigth: 2}}]",),
            (),
            r"classifiers\.0\.weigth: .*did you mean weight",
        ),
        (
            "demo",
            (f"reward.classifiers=[{{{HARM}, weight: 0}}]",),
            (),
            r"classifiers\.0\.weight: got 0, .*greater than 0",
        ),
        ("demo", (f"reward.classifiers=[{{{HARM}, name: a/b}}]",), (), r"classifiers\.0\.name: got 'a/b'"),
        ("demo", (f"reward.classifiers=[{{{HARM}}}, {{{HARM}}}]",), (), "a name of its own.* trained, harm, harm"),
        ("demo", ("reward.train.weight=-1",), (), "reward.train.weight: got -1"),
        ("demo", ("ctrl=null",), (), "procedure and transformation without ctrl: give ctrl, or leave it out"),
        (
            "demo",
            (ON_BASE, "data={prompts: {paths: [x], held_out: 1}}", "sft=null", f"reward={{classifiers: [{{{HARM}}}]}}"),
            (),
            "^config: got 'demo', accepted: ctrl needs data.prompts.held_out of at least 2",
        ),
    ],
)
def test_data_that_is_not_one_thing_is_refused(
    name: str, overrides: tuple[str, ...], paths: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidValue, match=message):
        load_config(name, overrides, paths)


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_launch_config_is_one_of_accelerate(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import DistributedType

    found = load_config_from_file(str(path))  # refuses keys that it does not know
    kinds = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP, "deepspeed": DistributedType.DEEPSPEED}
    assert found.distributed_type == kinds[path.stem]
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*found.fsdp_config, *found.deepspeed_config} <= options
