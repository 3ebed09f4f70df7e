"""What engines are told, on CPU and on GPU."""

import logging
from typing import Any

import pytest

from infalign.errors import InvalidValue
from server.engines import tuning
from server.engines.tuning import EngineOptions
from server.settings import Settings


def options(cpu: bool = True, context: int = 2048, **settings: Any) -> EngineOptions:
    return EngineOptions(Settings(**settings), context, cpu)


def test_on_cpu_candidates_share_most_of_a_prompt_and_no_step_is_long() -> None:
    assert options().policy()["block_size"] == options().reward(1)["block_size"] == 32
    assert options().reward(1)["max_num_batched_tokens"] == 1024
    assert options(context=512).policy()["max_num_batched_tokens"] == 4096


def test_a_prompt_of_the_policy_is_read_in_one_step() -> None:
    """A seeded request whose prefill is split kills the engine on CPU."""
    policy = options(context=10_000).policy()
    assert (policy["enable_chunked_prefill"], policy["max_num_batched_tokens"]) == (False, 10_000)


def test_a_reward_model_reads_texts_that_are_longer_than_a_step() -> None:
    assert options(context=10_000).reward(1)["enable_chunked_prefill"]


def test_on_gpu_vllm_decides_and_reward_models_share_their_memory() -> None:
    reward = options(cpu=False, gpu_memory=0.4).reward(2)
    assert reward["gpu_memory_utilization"] == 0.2
    assert not {"block_size", "enforce_eager", "max_num_batched_tokens", "enable_chunked_prefill"} & reward.keys()
    assert options(cpu=False, reference_gpu_memory=0.1).reference()["gpu_memory_utilization"] == 0.1
    assert options(cpu=False, block_size=16).policy()["block_size"] == 16


def test_a_block_size_that_the_platform_does_not_take_is_refused() -> None:
    with pytest.raises(InvalidValue, match="--block-size: got 48, accepted: on CPU, a multiple of 32"):
        options(block_size=48)
    assert options(block_size=64).policy()["block_size"] == 64


def test_engines_have_as_many_threads_as_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "cores", lambda: 6)
    assert tuning.environment(Settings())["OMP_NUM_THREADS"] == "6"
    assert tuning.environment(Settings(engine_threads=2))["OMP_NUM_THREADS"] == "2"
    with caplog.at_level(logging.WARNING):
        assert tuning.environment(Settings(engine_threads=9))["OMP_NUM_THREADS"] == "6"
    assert caplog.messages == ["--engine-threads 9: this machine has 6 cores, so 6 are used"]
