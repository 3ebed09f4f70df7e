"""Rollouts by real vLLM and real Ray: interrupted, continued, and the same wherever a shard is drawn."""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
from scipy.stats import ks_2samp

from infalign import InvalidValue, read_bundle
from infalign.errors import EngineFailed
from infalign.storage import load_calibration
from tests.tiny import tiny_job
from tests.training_runs import TINY, command, copy_stages, environment
from training import workers
from training.config import Ray
from training.data import read_prompts
from training.rollouts import read_rollouts, write_rollouts
from training.seeds import derive_seed
from training.shards import RolloutJob, split_shards

PROMPTS = [[{"role": "user", "content": f"{word} {other}?"}] for word in ("Why", "How") for other in "abcdef"]
SIZE = 3
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: infalign[ray]")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RolloutJob:
    return tiny_job(tmp_path_factory.mktemp("models"), samples=16, max_tokens=8)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def test_an_interrupted_run_by_vllm_keeps_its_shards_and_goes_on(tmp_path: Path, tiny_home: Path) -> None:
    copy_stages(tiny_home, tmp_path, "data", "sft", "reward")
    runs, log = tmp_path / "runs" / "demo", tmp_path / "log"
    more = ("--set", "rollouts.engine=vllm", "--set", "rollouts.shard=16", "--until", "calibrate")
    train = [*command(tmp_path / "bundle"), *more]
    with log.open("w") as stderr:
        process = subprocess.Popen(train, env=environment(tmp_path), stderr=stderr, start_new_session=True)
        wait_for(lambda: list(runs.glob(".rollouts-*/00001.jsonl")), process, log)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        assert process.wait() == 130, log.read_text()
    assert log.read_text().strip().endswith("infalign: interrupted")
    assert no_process_is_left(process.pid)
    (work,) = runs.glob(".rollouts-*")
    assert not list(runs.glob("rollouts-*"))
    again = (work / "00001.jsonl").read_bytes()
    (work / "00001.jsonl").unlink()  # drawn after another shard; now it is the first that an engine draws
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.jsonl")}
    assert "00000.jsonl" in kept

    done = subprocess.run(train, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reused") == 3
    (drawn,) = runs.glob("rollouts-*")
    shards = split_shards(read_prompts(next(runs.glob("data-*"))), 16)
    assert len(files(drawn)) == len(shards) > len(kept) + 1
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in drawn.iterdir()}.items()
    assert files(drawn)["00001.jsonl"] == again, "whatever is drawn before it, and by whichever process"
    (table,) = load_calibration(Path(done.stdout.strip()))[0].tables
    assert table.samples == TINY["rollouts.samples"]
    assert len(table) == sum(len(shard.prompts) for shard in shards)

    law = read_bundle(tiny_home / "bundle").manifest.sampling
    reference, reward = (next(runs.glob(f"{stage}-*")) / "model" for stage in ("sft", "reward"))
    job = RolloutJob(reference, reward, law, "transformers", table.samples, derive_seed(0, "rollouts"))
    other = tmp_path / "transformers"
    other.mkdir()
    write_rollouts(other, [list(row.prompt) for row in read_rollouts(drawn)], job, 256)
    ours, theirs = (
        {
            "rewards": [reward for row in read_rollouts(directory) for reward in row.rewards],
            "lengths": [len(tokens) for row in read_rollouts(directory) for tokens in row.tokens],
        }
        for directory in (drawn, other)
    )
    assert ours["rewards"] != theirs["rewards"]
    for figure, values in ours.items():
        assert ks_2samp(values, theirs[figure]).pvalue > 1e-4, figure


def no_process_is_left(group: int) -> bool:
    deadline = time.monotonic() + 30  # for those that end when they see their parent gone
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_an_engine_whose_process_is_killed_is_named(job: RolloutJob) -> None:
    busy = replace(job, samples=4096)
    drawing = workers.draw_in_subprocess(busy, split_shards(PROMPTS, 1), len(PROMPTS))
    next(drawing)
    (process,) = active_children()
    process.kill()
    with pytest.raises(EngineFailed, match=r"process of transformers was killed \(exit code -9"):
        list(drawing)
    assert not active_children()


def test_an_engine_that_does_not_start_is_named(job: RolloutJob, tmp_path: Path) -> None:
    broken, drawn = tmp_path / "broken", tmp_path / "drawn"
    shutil.copytree(job.reference, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    drawn.mkdir()
    with pytest.raises(EngineFailed, match=f"^vLLM did not start on {broken}: "):
        write_rollouts(drawn, PROMPTS, replace(job, reference=broken, engine="vllm"), SIZE)
    assert not files(drawn)
    assert not active_children()


@needs_ray
def test_actors_of_ray_draw_what_this_process_draws(job: RolloutJob, tmp_path: Path) -> None:
    import ray

    here, spread = tmp_path / "here", tmp_path / "spread"
    here.mkdir()
    spread.mkdir()
    write_rollouts(here, PROMPTS, job, SIZE)
    (spread / "00000.jsonl").write_bytes((here / "00000.jsonl").read_bytes())  # begun without Ray
    write_rollouts(spread, PROMPTS, job, SIZE, Ray(replicas=2))
    assert len(files(here)) == 4
    assert files(spread) == files(here)
    assert not ray.is_initialized()


@needs_ray
def test_a_failure_on_ray_is_one_line(job: RolloutJob, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"^model: got .*, accepted: a causal LM, by directory or hub id"):
        write_rollouts(tmp_path, PROMPTS, replace(job, reference=tmp_path), SIZE, Ray(replicas=1))
    with pytest.raises(InvalidValue, match=r"rollouts\.ray\.replicas: got 999, accepted: \d+ at most"):
        write_rollouts(tmp_path, PROMPTS, job, SIZE, Ray(replicas=999))
    assert not files(tmp_path)
