"""The pipeline survives being killed: the next run continues, and no half bundle is ever there."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from infalign import read_bundle
from tests.integration.conftest import INFALIGN

TINY = {
    "data.helpdesk.answers": 1,
    "data.helpdesk.pairs": 1,
    "data.helpdesk.held_out": 36,
    "rollouts.samples": 4,
    "rollouts.max_tokens": 16,
    "ctrl.steps": 3,
    "ctrl.prompts": 2,
    "ctrl.generations": 2,
    "model.scratch.hidden": 32,
    "model.scratch.layers": 1,
}


WATCHED = ("step", "sequence_kl", "quantile", "beta")


def command(output: Path) -> list[str]:
    overrides = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    return [INFALIGN, "train", "demo", *overrides, "--output", str(output)]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"INFALIGN_HOME": str(home), "OMP_NUM_THREADS": "1"}


def finished(runs: Path) -> dict[str, float]:
    """Finished stages and when each was made."""
    return {path.name: path.stat().st_mtime for path in runs.glob("[a-z]*-*")}


@pytest.mark.parametrize("stage", ["sft", "ctrl"])
def test_a_killed_run_is_continued(tmp_path: Path, stage: str) -> None:
    runs, output = tmp_path / "runs" / "demo", tmp_path / "bundle"
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command(output), env=environment(tmp_path), stderr=stderr, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not list(runs.glob(f".{stage}-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert not output.exists()
    before = finished(runs)
    assert not any(name.startswith(stage) for name in before)

    done = subprocess.run(command(output), env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert before.items() <= finished(runs).items()
    assert "reused" in done.stderr
    assert not list(runs.glob(".*-*"))
    found = read_bundle(output)
    assert found.table.samples == 4
    measured = found.policy().record.measured
    solved = json.loads(next(runs.glob("ctrl-*/solved.json")).read_text())
    assert solved["kl"]["value"] == pytest.approx(measured["kl"], abs=0.05)
    evaluated = json.loads((found.policy().evaluation / "figures.json").read_text())
    assert [row["procedure"] for row in evaluated["decoded"]][:3] == ["standard", "best-of-2", "best-of-4"]
    assert "best-of-4" in (output / "README.md").read_text()
    metrics = [json.loads(line) for line in next(runs.glob("ctrl-*/metrics.jsonl")).read_text().splitlines()]
    assert [row["sequence_kl"] for row in metrics if "sequence_kl" in row] != []

    assert 0 <= measured["reward_accuracy_low"] <= measured["reward_accuracy"] <= measured["reward_accuracy_high"] <= 1

    again = subprocess.run(command(output), env=environment(tmp_path), capture_output=True, text=True)
    assert again.stderr.count("reused") == 7


def test_a_plan_says_what_would_run_and_makes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*command(tmp_path / "bundle"), "--plan"], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "data",
        "sft",
        "reward",
        "rollouts",
        "calibrate",
        "ctrl",
        "evaluate",
    ]
    assert done.stdout.count("to run") == 7
    assert not list(tmp_path.iterdir())


def test_the_other_solver_learns_from_the_rollouts_and_settles(tmp_path: Path) -> None:
    solver = ["--set", "ctrl.solver=regression", "--set", "ctrl.target_kl=0.01", "--set", "transformation=identity"]
    more = ["--set", "ctrl.steps=30", "--set", "ctrl.prompts=16", "--set", "ctrl.generations=4"]
    done = subprocess.run(
        [*command(tmp_path / "bundle"), *solver, *more], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in next(tmp_path.glob("runs/demo/ctrl-*/metrics.jsonl")).open()]
    assert metrics[-1]["step"] == 30
    assert metrics[-1]["loss"] < metrics[0]["loss"] * 1.5
    solved = json.loads(next(tmp_path.glob("runs/demo/ctrl-*/solved.json")).read_text())
    assert 0 < solved["kl"]["value"] <= 0.013


@pytest.mark.parametrize("stage", ["sft", "ctrl"])
def test_a_stage_killed_between_its_steps_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path, stage: str) -> None:
    longer = ["--set", "ctrl.steps=12", "--set", "compute.save_every=2", "--until", stage]
    results = []
    for home in (tmp_path / "killed", tmp_path / "left"):
        runs = home / "runs" / "demo"
        home.mkdir()
        if home.name == "killed":
            with (home / "log").open("w") as stderr:
                process = subprocess.Popen([*command(home / "bundle"), *longer], env=environment(home), stderr=stderr)
                deadline = time.monotonic() + 300
                while (
                    not list(runs.glob(f".{stage}-*/checkpoints/*/trainer_state.json")) and time.monotonic() < deadline
                ):
                    assert process.poll() is None, (home / "log").read_text()
                    time.sleep(0.002)
                process.send_signal(signal.SIGKILL)
                process.wait()
            assert list(runs.glob(f".{stage}-*")), "it was done before it could be killed"
        done = subprocess.run(
            [*command(home / "bundle"), *longer], env=environment(home), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        [made] = runs.glob(f"{stage}-*")
        assert not (made / "checkpoints").exists()
        steps = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
        results.append(
            (
                (made / "model" / "model.safetensors").read_bytes(),
                [{key: value for key, value in row.items() if key in WATCHED} for row in steps],
            )
        )
    assert results[0] == results[1]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """By the gloo backend; accelerate runs FSDP2 and DeepSpeed on accelerators alone."""
    launch = [str(Path(INFALIGN).parent / "accelerate"), "launch", "--config_file", "training/launch/ddp.yaml"]
    rows, accuracies = [], []
    for launcher in ([*launch, "--num_processes", "2", "-m", "infalign"], [INFALIGN]):
        home = tmp_path / str(len(rows))
        done = subprocess.run(
            [*launcher, *command(home / "bundle")[1:]], env=environment(home), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        read_bundle(home / "bundle")
        [reward] = home.glob("runs/demo/reward-*")
        accuracies.append(json.loads((reward / "accuracy.json").read_text())["value"])
        [sft] = home.glob("runs/demo/sft-*")
        logged = [json.loads(line) for line in (sft / "metrics.jsonl").read_text().splitlines()]
        rows.append([(row["loss"], row["grad_norm"]) for row in logged if "loss" in row])
    assert len(rows[0]) > 1
    assert rows[0] == [pytest.approx(row, rel=1e-5) for row in rows[1]]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.1)  # a comparison or two are undecided


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(home)], capture_output=True).returncode:
        pytest.skip("a small disk takes the right to mount one")
    try:
        train = [*command(home / "bundle"), "--until", "data"]
        done = subprocess.run(train, env=environment(home), capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == (
            f"infalign: {home}/runs: no space left on the disk; what was finished is kept, and the next run goes on\n"
        )
        subprocess.run(["mount", "-o", "remount,size=64m", str(home)], check=True)
        done = subprocess.run(train, env=environment(home), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_ctrl_c_is_one_line_and_leaves_what_was_finished(tmp_path: Path) -> None:
    runs, log = tmp_path / "runs" / "demo", tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command(tmp_path / "bundle"), env=environment(tmp_path), stderr=stderr)
        deadline = time.monotonic() + 300
        while not list(runs.glob(".reward-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert log.read_text().replace("\r", "\n").splitlines()[-1] == "infalign: interrupted"
    assert {name.split("-")[0] for name in finished(runs)} == {"data", "sft"}
