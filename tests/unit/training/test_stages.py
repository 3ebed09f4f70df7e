"""Stages: named by all that they are made from; a killed one begins anew, or goes on from what it left."""

import inspect
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

from infalign.errors import InvalidValue, TooLittleMemory
from infalign.manifest import SamplingLaw
from training import pipeline, runner
from training.config import Config
from training.configs import load_config
from training.identity import Identities
from training.interrupts import remember_interrupts
from training.runner import Runner
from training.stages import STAGES, Artifacts, Stage

HERE = "tests.unit.training.test_stages"
BASE = "model={{base: {{path: {path}, positions: 64}}}}"


class Given(Stage):
    """A stage of one input."""

    name = "stage"
    purpose = "shows what it finds"

    def __init__(self, build: str, given: int, resumes: bool) -> None:
        self.build, self.given, self.resumes = f"{HERE}:{build}", given, resumes  # type: ignore[misc]

    def inputs(self, config: Config, artifacts: Artifacts) -> dict[str, Any]:
        return {"given": self.given}


def killed(directory: Path, given: int) -> None:
    (directory / "part").write_text("of the killed run")
    raise KeyboardInterrupt


def greedy(directory: Path, given: int) -> None:
    raise (MemoryError("of Python"), torch.OutOfMemoryError("of the GPU"))[given]


def greedy_on_cpu(directory: Path, given: int) -> None:
    torch.empty(1 << given)


def broken(directory: Path, given: int) -> None:
    raise RuntimeError("a mistake in the code")


def listing(directory: Path, given: int) -> None:
    (directory / "listing").write_text(json.dumps([path.name for path in directory.iterdir()]))


def test_an_interrupt_that_an_import_drops_ends_the_run_before_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_and_drop(name: str) -> Any:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return resolve_name(name)

    monkeypatch.setattr(runner, "resolve_name", import_and_drop)
    stage = Given("listing", 1, True)
    with pytest.raises(KeyboardInterrupt), remember_interrupts():
        Runner(tmp_path, stages=[stage]).run(stage, load_config("demo"), Artifacts())
    [work] = tmp_path.glob(".stage-*")
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    ("build", "given", "reason"), [("greedy", 0, "of Python"), ("greedy", 1, "of the GPU"), ("greedy_on_cpu", 60, "")]
)
def test_a_lack_of_memory_is_one_line_that_names_the_stage(tmp_path: Path, build: str, given: int, reason: str) -> None:
    stage = Given(build, given, True)
    with pytest.raises(TooLittleMemory, match=rf"^stage: memory ran out \(.*{reason}.*\); what helps: a smaller "):
        Runner(tmp_path, stages=[stage]).run(stage, load_config("demo"), Artifacts())
    mistaken = Given("broken", 1, True)
    with pytest.raises(RuntimeError, match="a mistake"):
        Runner(tmp_path, stages=[mistaken]).run(mistaken, load_config("demo"), Artifacts())


def test_processes_that_the_solver_cannot_use_are_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises(InvalidValue) as refused:
            pipeline.run_stages(load_config("demo", ("ctrl.prompts=9",)), tmp_path)
        return str(refused.value)

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refusal() == "ctrl.prompts: got 9, accepted: a multiple of the 2 processes"
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert refusal().startswith("ctrl.solver: got 'ctrl', accepted: rloo, where weights are split")
    assert not list(tmp_path.glob("demo/data-*"))


@pytest.mark.parametrize("resumes", [False, True])
def test_a_stage_that_resumes_finds_what_was_left(tmp_path: Path, resumes: bool) -> None:
    def run(build: str, given: int) -> Path:
        stage = Given(build, given, resumes)
        return Runner(tmp_path, stages=[stage]).run(stage, load_config("demo"), Artifacts())

    with pytest.raises(KeyboardInterrupt):
        run("killed", 1)
    left = next(tmp_path.glob(".stage-*"))
    directories = [run("listing", given) for given in (1, 2)]
    assert [json.loads((path / "listing").read_text()) for path in directories] == [[], []]  # made by other code
    assert left.exists()
    left.rename(tmp_path / f".{directories[0].name}")
    shutil.rmtree(directories[0])
    run("listing", 1)
    assert json.loads((directories[0] / "listing").read_text()) == (["part"] if resumes else [])


def keys(root: Path, *overrides: str) -> dict[str, str]:
    """Names of the directories of a run's stages."""
    config = load_config("demo", overrides)
    return {report.name: report.directory.name for report in pipeline._plan(config, Runner(root, dry=True))}


@pytest.mark.parametrize("override", ["scorer.bins=4", "scorer.limit=0.01", "scorer=null"])
def test_the_scorer_changes_no_other_stage(tmp_path: Path, override: str) -> None:
    before, after = keys(tmp_path), keys(tmp_path, override)
    assert [stage for stage in AFTER if before[stage] != after[stage]] == ["scorer"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_is_a_function_that_takes_what_it_is_given(tmp_path: Path, stage: Stage) -> None:
    artifacts = Artifacts({each.name: tmp_path / each.name for each in STAGES})
    inspect.signature(resolve_name(stage.build)).bind(tmp_path, **stage.inputs(load_config("demo"), artifacts))


AFTER = tuple(stage.name for stage in STAGES)


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("seed=1", "data"),
        ("model.scratch.hidden=64", "data"),
        ("data.helpdesk.answers=1", "data"),
        ("rollouts.max_tokens=32", "data"),
        ("sft.batch=8", "sft"),
        ("compute.precision=bfloat16", "sft"),
        ("reward.train.epochs=2", "reward"),
        ("rollouts.samples=8", "rollouts"),
        ("rollouts.engine=vllm", "rollouts"),
        ("rollouts.shard=8", "rollouts"),
        ("ctrl.steps=3", "ctrl"),
        ("transformation=log", "ctrl"),
        ("procedure=worst-of-4", "ctrl"),
        ("compute.sequences=2", None),
        ("compute.gradient_checkpointing=true", None),
        ("compute.save_every=7", None),
        ("compute.report_to=[tensorboard]", None),
        ("rollouts.ray={replicas: 2}", None),
        ("policy=another", None),
    ],
)
def test_a_key_of_the_config_changes_the_stages_from_the_first_that_it_concerns(
    tmp_path: Path, override: str, first: str | None
) -> None:
    before, after = keys(tmp_path), keys(tmp_path, override)
    changed = [stage for stage in AFTER if before[stage] != after[stage]]
    assert changed == (list(AFTER[AFTER.index(first) :]) if first else [])


def test_the_contents_of_a_base_model_count(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "weights").write_text("1")
    before = keys(tmp_path, BASE.format(path=base))
    assert keys(tmp_path, BASE.format(path=base)) == before
    (base / "weights").write_text("2")
    assert keys(tmp_path, BASE.format(path=base))["data"] != before["data"]
    assert keys(tmp_path, BASE.format(path="org/on-the-hub")) == keys(tmp_path, BASE.format(path="org/on-the-hub"))


def test_the_version_of_a_library_counts_where_the_stage_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tmp_path), keys(tmp_path, "rollouts.engine=vllm")
    known = runner.version
    monkeypatch.setattr(runner, "version", lambda name: "0" if name.startswith("vllm") else known(name))
    assert keys(tmp_path) == before[0]
    assert keys(tmp_path, "rollouts.engine=vllm") != before[1]
    monkeypatch.setattr(runner, "version", lambda name: "0" if name == "trl" else known(name))
    after = keys(tmp_path)
    assert after["data"] == before[0]["data"]
    assert after["sft"] != before[0]["sft"]


def test_the_data_is_given_nothing_that_does_not_count() -> None:
    given = load_config("demo").for_data
    assert given.sft
    with pytest.raises(AttributeError):
        _ = given.sft.batch
    with pytest.raises(AttributeError):
        _ = given.rollouts.samples


def test_an_argument_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    encode = Identities(tmp_path).encode
    assert encode([SamplingLaw(max_tokens=2), {"a": 1.5}, tmp_path / "sft-1" / "model"]) == [
        {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 2},
        {"a": 1.5},
        "sft-1/model",
    ]
    with pytest.raises(TypeError, match="a stage cannot depend on a function"):
        encode(lambda: None)
