"""The pipeline survives being killed: the next run continues, and no half bundle is ever there."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from infalign import read_bundle
from tests.commands import run_here
from tests.training_runs import INFALIGN, command, copy_stages, environment


def finished(runs: Path) -> dict[str, float]:
    """Finished stages and when each was made."""
    return {path.name: path.stat().st_mtime for path in runs.glob("[a-z]*-*")}


def train(home: Path) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command(home / "bundle"), env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def train_here(home: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """The same in this process, where the weights need not be those of another run bit for bit."""
    done = run_here(*command(home / "bundle")[1:], *more, INFALIGN_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return done


def plan(home: Path) -> "subprocess.CompletedProcess[str]":
    """What a run would do."""
    return train_here(home, "--plan")


def weights(home: Path, stage: str) -> bytes:
    [made] = home.glob(f"runs/demo/{stage}-*/model/model.safetensors")
    return made.read_bytes()


def metrics(home: Path, stage: str) -> list[dict[str, float]]:
    [made] = home.glob(f"runs/demo/{stage}-*/metrics.jsonl")
    return [json.loads(line) for line in made.read_text().splitlines()]


def kill_in(home: Path, stage: str) -> None:
    """Start a run and kill it as soon as ``stage`` has a whole checkpoint."""
    runs, log = home / "runs" / "demo", home / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command(home / "bundle"), env=environment(home), stderr=stderr)
        deadline = time.monotonic() + 300
        checkpoint = "checkpoint.pt" if stage == "ctrl" else "checkpoints/*/trainer_state.json"
        while not list(runs.glob(f".{stage}-*/{checkpoint}")) and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert list(runs.glob(f".{stage}-*")), "it was done before it could be killed"
    assert not (home / "bundle").exists()


def test_a_run_killed_twice_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path, tiny_home: Path) -> None:
    runs = tmp_path / "runs" / "demo"
    kill_in(tmp_path, "sft")
    kill_in(tmp_path, "ctrl")  # a unit test kills the scorer
    before = finished(runs)
    assert {name.split("-")[0] for name in before} == {"data", "sft", "reward", "rollouts", "calibrate", "scorer"}
    done = train(tmp_path)
    assert before.items() <= finished(runs).items()
    assert done.stderr.count("reused") == 6
    assert not list(runs.glob(".*-*"))
    assert not list(runs.glob("*/checkpoints"))
    for stage in ("sft", "reward", "scorer", "ctrl"):
        assert weights(tmp_path, stage) == weights(tiny_home, stage)
    watched = ("step", "sequence_kl", "quantile", "beta")
    ours, theirs = (
        [{key: row[key] for key in watched if key in row} for row in metrics(home, "ctrl")]
        for home in (tmp_path, tiny_home)
    )
    assert ours == theirs
    assert plan(tmp_path).stdout.count("reused") == 9


def test_a_run_leaves_a_bundle_with_what_it_measured(tiny_home: Path) -> None:
    found = read_bundle(tiny_home / "bundle")
    assert found.table.samples == 4
    assert found.scorer
    assert list(found.scorer.rejection) == ["best-of-4", "worst-of-4"]
    measured = found.policy().record.measured
    [made] = tiny_home.glob("runs/demo/ctrl-*")
    solved = json.loads((made / "solved.json").read_text())
    assert solved["kl"]["value"] == pytest.approx(measured["kl"], abs=0.05)
    evaluated = json.loads((found.policy().evaluation / "figures.json").read_text())
    assert [row["procedure"] for row in evaluated["decoded"]][:3] == ["standard", "best-of-2", "best-of-4"]
    card = (tiny_home / "bundle" / "README.md").read_text()
    assert "best-of-4" in card
    assert "## How sharp the scorer is" in card
    assert [row["sequence_kl"] for row in metrics(tiny_home, "ctrl") if "sequence_kl" in row] != []
    assert (made / "curves.svg").exists()
    assert 0 <= measured["reward_accuracy_low"] <= measured["reward_accuracy"] <= measured["reward_accuracy_high"] <= 1


def test_a_plan_says_what_would_run_and_makes_nothing(tmp_path: Path) -> None:
    done = plan(tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "stage",
        "data",
        "sft",
        "reward",
        "rollouts",
        "calibrate",
        "scorer",
        "ctrl",
        "evaluate",
        "judge",
    ]
    assert done.stdout.count("to run") == 9
    assert done.stderr == "Memory and time are unknown until the stage data has run (--until data).\n"
    assert not list(tmp_path.iterdir())


def test_the_other_solver_learns_from_the_rollouts_and_settles(tmp_path: Path, tiny_home: Path) -> None:
    copy_stages(tiny_home, tmp_path, "data", "sft", "reward", "rollouts", "calibrate", "scorer")
    changes = {
        "transformation": "identity",
        "ctrl.solver": "regression",
        "ctrl.anneal": 0,
        "ctrl.target_kl": 0.01,
        "ctrl.steps": 30,
        "ctrl.prompts": 16,
        "ctrl.generations": 4,
        "ctrl.learning_rate": 0.0003,
    }
    done = train_here(tmp_path, *(part for key, value in changes.items() for part in ("--set", f"{key}={value}")))
    assert done.stderr.count("reused") == 6
    metrics = [json.loads(line) for line in next(tmp_path.glob("runs/demo/ctrl-*/metrics.jsonl")).open()]
    assert metrics[-1]["step"] == 30
    assert metrics[-1]["loss"] < metrics[0]["loss"] * 1.5
    solved = json.loads(next(tmp_path.glob("runs/demo/ctrl-*/solved.json")).read_text())
    assert 0 < solved["kl"]["value"] <= 0.013


def test_two_processes_learn_what_one_does(tmp_path: Path, tiny_home: Path) -> None:
    """By the gloo backend; accelerate runs FSDP2 and DeepSpeed on accelerators alone."""
    accelerate = str(Path(INFALIGN).parent / "accelerate")
    launch = [
        accelerate,
        "launch",
        "--config_file",
        "training/launch/ddp.yaml",
        "--num_processes",
        "2",
        "-m",
        "infalign",
    ]
    done = subprocess.run(
        [*launch, *command(tmp_path / "bundle")[1:]], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    read_bundle(tmp_path / "bundle")
    ours, theirs = (
        [(row["loss"], row["grad_norm"]) for row in metrics(home, "sft") if "loss" in row]
        for home in (tmp_path, tiny_home)
    )
    assert len(ours) > 1
    assert ours == [pytest.approx(row, rel=1e-5) for row in theirs]


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(home)], capture_output=True).returncode:
        pytest.skip("a small disk takes the right to mount one")
    try:
        train = [*command(home / "bundle"), "--until", "data"]
        done = subprocess.run(train, env=environment(home), capture_output=True, text=True)
        assert done.returncode == 2
        stage, error = done.stderr.splitlines()
        assert stage.startswith("stage 1 of 10, data: ")
        assert error == (
            f"infalign: {home}/runs: no space left on the disk; what was finished is kept, and the next run goes on"
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
