"""Shards come out the same whoever draws them, and however often the stage is killed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infalign import InvalidValue
from infalign.errors import EngineFailed
from tests.tiny import tiny_job
from training import workers
from training.configs import load_config
from training.pipeline import run_stages
from training.rollouts import read_rollouts, write_rollouts
from training.sampler import Sampler
from training.scorer import Scorer
from training.seeds import derive_seed
from training.shards import RolloutJob, split_shards

PROMPTS = [[{"role": "user", "content": f"{word} {other}?"}] for word in ("Why", "How") for other in "abcde"]
K, SIZE = 3, 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> RolloutJob:
    return tiny_job(tmp_path_factory.mktemp("models"), samples=K, max_tokens=5)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_prompt_has_its_scored_responses_in_order(job: RolloutJob, tmp_path: Path) -> None:
    write_rollouts(tmp_path, PROMPTS, job, SIZE)
    assert sorted(files(tmp_path)) == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    found = list(read_rollouts(tmp_path))
    assert [row.prompt for row in found] == PROMPTS
    scorer = Scorer.load(job.reward)
    for row in found:
        assert len(row.responses) == len(row.tokens) == K
        assert all(0 < len(tokens) <= 5 for tokens in row.tokens)
        assert row.rewards == pytest.approx(scorer.score([row.prompt] * K, row.responses).tolist(), abs=1e-5)
    assert len({tuple(map(tuple, row.tokens)) for row in found}) == len(PROMPTS)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_killed_stage_ends_as_if_it_had_not_been(
    job: RolloutJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    write_rollouts(whole, PROMPTS, job, SIZE)
    real, seeds = Sampler.draw, []

    def draw(self: Sampler, prompts: list, seed: int, stage: str) -> list[list[int]]:
        seeds.append(seed)
        if len(seeds) == after + 1:
            raise KeyboardInterrupt
        return real(self, prompts, seed, stage)

    monkeypatch.setattr(Sampler, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        write_rollouts(killed, PROMPTS, job, SIZE)
    assert files(killed).items() <= files(whole).items()
    assert len(files(killed)) == after
    (killed / f"{after:05d}.part").write_text("half a sha")  # as of a process that was killed while it wrote
    write_rollouts(killed, PROMPTS, job, SIZE)
    assert files(killed) == files(whole)
    assert seeds == [derive_seed(0, f"shard {number}") for number in [*range(after + 1), *range(after, 3)]]
    write_rollouts(killed, PROMPTS, job, SIZE)
    assert len(seeds) == 4  # nothing was missing


@pytest.mark.parametrize(("size", "counts"), [(1, [1] * 10), (4, [4, 4, 2]), (10, [10]), (256, [10])])
def test_shards_hold_every_prompt_once(size: int, counts: list[int]) -> None:
    found = split_shards(PROMPTS, size)
    assert [len(shard.prompts) for shard in found] == counts
    assert [messages for shard in found for messages in shard.prompts] == PROMPTS


def test_there_must_be_a_prompt(job: RolloutJob, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="rollouts: got 'no prompts', accepted: at least one"):
        write_rollouts(tmp_path, [], job, SIZE)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_lack_of_memory_is_named_and_keeps_what_is_finished(
    job: RolloutJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    real = Scorer.score

    def score(self: Scorer, prompts: list, responses: list) -> np.ndarray:
        if PROMPTS[SIZE] in prompts:
            raise error
        return real(self, prompts, responses)

    monkeypatch.setattr(Scorer, "score", score)
    with pytest.raises(EngineFailed, match="rollouts, shard 1: out of memory; finished shards are kept"):
        write_rollouts(tmp_path, PROMPTS, job, SIZE)
    assert list(files(tmp_path)) == ["00000.jsonl"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollouts.engine=vlm", "rollouts.engine: got 'vlm', accepted: .*'transformers' or 'vllm'"),
        ("rollouts.shard=0", "rollouts.shard: got 0"),
        ("rollouts.ray={}", "rollouts.ray.replicas: got None, accepted: this field is required"),
        ("rollouts.ray={replicas: 0}", "rollouts.ray.replicas: got 0"),
        ("rollouts.ray={replicas: 1, gpus: 2}", "rollouts.ray.gpus: got 2"),
        ("rollouts.ray={replicas: 1, adress: auto}", "rollouts.ray.adress: .*did you mean address"),
    ],
)
def test_a_config_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        load_config("demo", (override,))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with neither Ray nor vLLM."""
    monkeypatch.setattr(workers, "find_spec", {}.get)
    monkeypatch.setattr(workers, "vllm_version", lambda: None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollouts.engine=vllm", r"rollouts.engine: got 'vllm', accepted: transformers, .*infalign\[cpu\]"),
        ("rollouts.ray={replicas: 2}", r"rollouts.ray: got 'local', accepted: .*infalign\[ray\]"),
    ],
)
@pytest.mark.usefixtures("bare")
def test_what_is_not_installed_is_named_before_anything_runs(override: str, message: str, tmp_path: Path) -> None:
    workers.check_rollouts(load_config("demo").rollouts)
    with pytest.raises(InvalidValue, match=message):
        workers.check_rollouts(load_config("demo", (override,)).rollouts)
    with pytest.raises(InvalidValue, match=r"^ctrl.engine: got 'vllm', accepted: transformers"):
        run_stages(load_config("demo", ("ctrl.engine=vllm",)), tmp_path)


def test_one_machine_does_not_grow() -> None:
    config = load_config("demo", ("rollouts.ray={replicas: 3, gpus: 1}",)).rollouts.ray
    assert config
    workers.check_room({"CPU": 8.0, "GPU": 3.0}, config)
    with pytest.raises(InvalidValue, match=r"rollouts\.ray\.replicas: got 3, accepted: 2 at most"):
        workers.check_room({"CPU": 8.0, "GPU": 2.0}, config)
    with pytest.raises(InvalidValue, match="accepted: 0 at most"):
        workers.check_room({"CPU": 8.0}, config)
