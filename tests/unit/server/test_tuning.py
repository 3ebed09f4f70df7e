"""What engines are told, on CPU and on GPU."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infalign.errors import InvalidValue
from server.engines import tuning
from server.engines.tuning import EngineOptions, least_cache, set_threads
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
    assert not {"block_size", "enforce_eager"} & reward.keys()
    assert reward["max_num_batched_tokens"] == 8192
    assert not {"max_num_batched_tokens", "enable_chunked_prefill"} & options(cpu=False).policy().keys()
    assert options(cpu=False, reference_gpu_memory=0.1).reference()["gpu_memory_utilization"] == 0.1
    assert options(cpu=False, block_size=16).policy()["block_size"] == 16
    assert options(cpu=False, reward_step_tokens=512).reward(1)["max_num_batched_tokens"] == 512


def test_models_are_compiled_on_gpu_and_where_it_is_asked_for() -> None:
    assert options().policy()["enforce_eager"]
    assert not any("enforce_eager" in one.policy() for one in (options(compile=True), options(cpu=False)))


def test_a_block_size_that_the_platform_does_not_take_is_refused() -> None:
    with pytest.raises(InvalidValue, match="--block-size: got 48, accepted: on CPU, a multiple of 32"):
        options(block_size=48)
    assert options(block_size=64).policy()["block_size"] == 64


def test_a_step_shorter_than_its_sequences_is_refused() -> None:
    with pytest.raises(
        InvalidValue, match="--reward-step-tokens: got 63, accepted: at least --max-sequences, which is 64"
    ):
        options(reward_step_tokens=63, max_sequences=64)
    assert options(max_sequences=2000).reward(1)["max_num_batched_tokens"] == 2000
    assert options(max_sequences=5000).policy()["max_num_batched_tokens"] == 5000


def model(
    attn_type: str = "decoder", use_mla: bool = False, window: int | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """What is asked of vLLM's config of a model with 8 layers and 16 heads of 32 numbers."""
    return SimpleNamespace(
        attn_type=attn_type,
        use_mla=use_mla,
        dtype=dtype,
        hf_text_config=SimpleNamespace(num_hidden_layers=8),
        get_total_num_kv_heads=lambda: 16,
        get_head_size=lambda: 32,
        get_sliding_window=lambda: window,
    )


def test_the_least_cache_holds_one_text_and_the_block_that_vllm_keeps() -> None:
    assert least_cache(model(), context=2048, block=32) == 65  # 32 KiB a token in float32
    assert least_cache(model(dtype=torch.bfloat16), context=2048, block=32) == 33
    assert least_cache(model(), context=2049, block=128) == 72
    odd = (model(use_mla=True), model(attn_type="encoder_only"), model(window=512))
    assert [least_cache(one, 2048, 32) for one in odd] == [None] * 3


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    variables: dict[str, str] = {}
    monkeypatch.setattr(tuning, "os", SimpleNamespace(environ=variables))
    return variables


def test_engines_have_as_many_threads_as_there_are_cores(environment: dict[str, str]) -> None:
    set_threads(Settings(), cores=6)
    assert environment == {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


def test_the_environment_wins_but_for_what_is_said_twice(environment: dict[str, str]) -> None:
    environment |= {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active"}
    set_threads(Settings(), cores=6)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "active")
    set_threads(Settings(engine_threads=2), cores=6)
    assert environment["OMP_NUM_THREADS"] == "2"


def test_more_threads_than_cores_are_corrected(environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        set_threads(Settings(engine_threads=9), cores=6)
    assert environment["OMP_NUM_THREADS"] == "6"
    assert caplog.messages == ["--engine-threads 9: this process has 6 cores, so 6 are used"]
