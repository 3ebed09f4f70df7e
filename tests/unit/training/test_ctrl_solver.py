"""The solver ctrl: it learns, goes on bit for bit after a kill, and stops when it diverges."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from infalign.errors import Diverged
from tests.tiny import CTRL, load_tiny_task, make_tiny_task
from training.config import Compute, Lora
from training.progress import read_rows
from training.shared_prompts import SharedPrompts
from training.solvers import Task, ctrl
from training.solvers.objectives import Objective


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_tiny_task(tmp_path_factory.mktemp("task"))


def train(task: Task, directory: Path) -> dict[str, np.ndarray]:
    directory.mkdir(exist_ok=True)
    ctrl.solve(replace(task, directory=directory), directory / "model")
    assert not (directory / ctrl.CHECKPOINT).exists()
    return load_file(directory / "model" / "model.safetensors")


@pytest.mark.parametrize("objective", ["fixed", "live", "group"])
def test_a_killed_run_goes_on_bit_for_bit(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    task = replace(task, config=CTRL.model_copy(update={"objective": objective}))
    whole = train(task, tmp_path / "whole")
    real = ctrl.logit_gradient
    calls = 0

    def fail_at_the_fourth(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    killed = tmp_path / "killed"
    monkeypatch.setattr(ctrl, "logit_gradient", fail_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train(task, killed)
    monkeypatch.undo()
    assert (killed / ctrl.CHECKPOINT).exists()
    assert [row["step"] for row in read_rows(killed / "metrics.jsonl")] == [1, 2, 3]
    resumed = train(task, killed)
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert read_rows(killed / "metrics.jsonl") == read_rows(tmp_path / "whole" / "metrics.jsonl")


def test_all_processes_start_from_the_same_adapter(task: Task, tmp_path: Path) -> None:
    """Whatever they have drawn before."""
    task = replace(task, config=CTRL.model_copy(update={"lora": Lora(rank=2, alpha=4), "steps": 1}))
    adapters = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ctrl.solve(replace(task, directory=tmp_path / name), tmp_path / name / "model")
        adapters.append(load_file(tmp_path / name / "model" / "adapter_model.safetensors"))
        torch.rand(3)
    assert all(np.array_equal(adapters[0][key], adapters[1][key]) for key in adapters[0])


def test_gradient_checkpointing_changes_nothing(task: Task, tmp_path: Path) -> None:
    """It needs training mode, in which models have dropout."""
    copy = Path(shutil.copytree(task.directory, tmp_path / "task"))
    config = copy / "reference" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.5}))
    task = load_tiny_task(copy)
    plain = train(task, tmp_path / "plain")
    saving = train(replace(task, compute=Compute(gradient_checkpointing=True)), tmp_path / "saving")
    for name, weights in plain.items():
        np.testing.assert_allclose(saving[name], weights, atol=2e-4)


def test_prompts_are_read_once_for_all_responses_only_if_they_fit(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = train(task, tmp_path / "once")
    choices = []

    class Spy(SharedPrompts):
        def __init__(self, model: Any, tokenizer: Any, prompts: Any, is_shared: bool) -> None:
            choices.append(is_shared)
            super().__init__(model, tokenizer, prompts, is_shared)

    monkeypatch.setattr(ctrl, "SharedPrompts", Spy)
    monkeypatch.setattr(ctrl, "prompt_bytes", lambda *_: 1 << 60)
    again = train(task, tmp_path / "again")
    assert set(choices) == {False}
    for name, weights in once.items():
        np.testing.assert_allclose(again[name], weights, atol=2e-4)


def test_how_much_is_done_at_a_time_changes_nothing(task: Task, tmp_path: Path) -> None:
    whole = train(task, tmp_path / "whole")
    parts = train(replace(task, compute=Compute(sequences=4)), tmp_path / "parts")
    for name, weights in whole.items():
        np.testing.assert_allclose(parts[name], weights, atol=2e-4)


@pytest.mark.timeout(300)
def test_two_processes_follow_the_gradient_that_one_does(task: Task, tmp_path: Path) -> None:
    """Each takes its share of the draws that one process would take."""

    def solve(directory: Path, count: int) -> dict[str, np.ndarray]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.ctrl_process", str(task.directory), str(directory)]
        ranks = [
            shared | ({"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
            for rank in range(count)
        ]
        started = [subprocess.Popen(command, env=environment) for environment in ranks]
        assert [process.wait(250) for process in started] == [0] * count
        return load_file(directory / "model" / "model.safetensors")

    one, two = solve(tmp_path / "one", 1), solve(tmp_path / "two", 2)
    assert all(np.allclose(two[name], weights, atol=2e-4) for name, weights in one.items())
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for ours, theirs in zip(*rows, strict=True):
        assert [ours[name] for name in ("kl", "grad_norm", "quantile")] == pytest.approx(
            [theirs[name] for name in ("kl", "grad_norm", "quantile")], rel=1e-3
        )


def test_it_learns(task: Task, tmp_path: Path) -> None:
    config = CTRL.model_copy(update={"steps": 40, "prompts": 5, "generations": 16, "target_kl": 1.0})
    train(replace(task, config=config, compute=Compute()), tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    before, after = (np.mean([row["quantile"] for row in part]) for part in (rows[:4], rows[-4:]))
    assert after > before + 0.1
    assert 0 < rows[-1]["sequence_kl"] < 3


class Broken(Objective):
    def advantages(self, quantiles: np.ndarray, rewards: np.ndarray, progress: float) -> np.ndarray:
        return quantiles * (np.nan if progress > 0.3 else 1)


def test_a_run_that_diverges_names_the_step_and_the_last_checkpoint(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctrl, "make_objective", lambda _: Broken())
    expected = "ctrl: grad_norm is nan at step 3; the last checkpoint is of step 2"
    with pytest.raises(Diverged, match=expected):
        train(task, tmp_path)


def test_rewards_that_collapse_stop_the_run(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctrl, "COLLAPSE", 2.0)
    with pytest.raises(
        Diverged, match=r"^ctrl: the mean quantile of recent steps is 0\.\d+ at step 1, .*no checkpoint was"
    ):
        train(task, tmp_path)
