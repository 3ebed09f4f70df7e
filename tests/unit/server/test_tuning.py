"""What engines are told, on CPU and on GPU."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infalign.errors import InvalidValue
from server.engines import tuning
from server.engines.tuning import EngineOptions, check_cache, least_cache, set_threads
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
    assert options(cpu=False, scorer_gpu_memory=0.2).scorer()["gpu_memory_utilization"] == 0.2
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


def config(
    attn_type: str = "decoder",
    use_mla: bool = False,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    context: int = 2048,
    block: int = 32,
    cache: int | None = None,
    cache_dtype: str = "auto",
) -> Any:
    """What is asked of vLLM's config of a model with 8 layers and 16 heads of 32 numbers."""
    model = SimpleNamespace(
        attn_type=attn_type,
        use_mla=use_mla,
        dtype=dtype,
        max_model_len=context,
        original_max_model_len=context,
        get_num_layers=lambda parallel: 8 // parallel.pipeline_parallel_size,
        get_num_kv_heads=lambda parallel: 16 // parallel.tensor_parallel_size,
        get_head_size=lambda: 32,
        get_sliding_window=lambda: window,
    )
    return SimpleNamespace(
        model_config=model,
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(block_size=block, cache_dtype=cache_dtype, kv_cache_memory_bytes=cache),
    )


def least_mib(**changes: Any) -> float:
    return (least_cache(config(**changes)) or 0) / 2**20


def test_the_least_cache_holds_one_text_and_the_block_that_vllm_keeps() -> None:
    assert least_mib() == 65  # 32 KiB a token in float32
    assert least_mib(dtype=torch.bfloat16) == 32.5
    assert least_mib(context=2049, block=128) == 72
    for odd in ({"use_mla": True}, {"attn_type": "encoder_only"}, {"window": 512}, {"cache_dtype": "fp8"}):
        assert least_cache(config(**odd)) is None


def test_devices_share_the_cache_of_a_text() -> None:
    split = config()
    split.parallel_config.tensor_parallel_size = 2
    assert least_cache(split) == 65 * 2**19


def test_a_cache_that_does_not_hold_one_text_is_refused() -> None:
    check_cache(config(cache=65 << 20), "policy", Settings(kv_cache_mib=65))
    with pytest.raises(InvalidValue, match=r"^--kv-cache-mib: got 64, accepted: at least 65, which the policy takes"):
        check_cache(config(cache=64 << 20), "policy", Settings(kv_cache_mib=64))
    with pytest.raises(InvalidValue, match=r"^kv_cache_memory_bytes: got 67108864, accepted: at least 68157440, which"):
        check_cache(config(cache=64 << 20), "policy", Settings())


def test_the_operator_has_the_last_word_on_an_engine() -> None:
    own = {"dtype": "bfloat16", "max_model_len": 8000, "max_num_seqs": 5000}
    assert options().policy(own).items() >= own.items()
    assert options().policy(own)["max_num_batched_tokens"] == 8000
    assert options().policy({"max_num_seqs": 5000})["max_num_batched_tokens"] == 5000
    assert options().reward(1, own).items() >= own.items()
    assert options().reward(1, own)["max_num_batched_tokens"] == 5000
    assert options(cpu=False).reference({"gpu_memory_utilization": 0.3})["gpu_memory_utilization"] == 0.3


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    variables: dict[str, str] = {}
    monkeypatch.setattr(tuning, "os", SimpleNamespace(environ=variables))
    return variables


def test_engines_have_as_many_threads_as_there_are_cores(environment: dict[str, str]) -> None:
    set_threads(Settings(), cores=6)
    assert environment == {
        "OMP_NUM_THREADS": "6",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "2000",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


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
