"""What the operator sets by vLLM's own names."""

from pathlib import Path
from typing import Any

import pytest

from infalign.errors import InvalidValue
from server.cli import serve
from server.engines.overrides import Overrides, read_overrides
from server.options import parse_settings
from server.settings import Settings

FILE = """
policy:
  tensor-parallel-size: 2
  max_model_len: 8k
  enable_prefix_caching: false
reward:
  dtype: bfloat16
  max_num_seqs: 32
rewards:
  safety:
    max_num_seqs: 16
scorer:
  max_num_batched_tokens: 512
"""
REWARDS = ("helpfulness", "safety")


def read(
    path: Path | None = None,
    text: str = FILE,
    has_reference: bool = True,
    has_scorer: bool = True,
    **settings: Any,
) -> Overrides:
    if path is not None:
        (path / "engines.yaml").write_text(text)
        settings["engines"] = path / "engines.yaml"
    return read_overrides(Settings(**settings), REWARDS, has_reference, has_scorer)


def refusal(path: Path | None = None, text: str = FILE, **settings: Any) -> str:
    with pytest.raises(InvalidValue) as refused:
        read(path, text, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_each_engine_has_settings_of_its_own(tmp_path: Path) -> None:
    overrides = read(tmp_path)
    assert overrides.policy == {"tensor_parallel_size": 2, "max_model_len": 8000, "enable_prefix_caching": False}
    assert overrides.reference == {}
    assert overrides.rewards == {
        "helpfulness": {"dtype": "bfloat16", "max_num_seqs": 32},
        "safety": {"dtype": "bfloat16", "max_num_seqs": 16},
    }
    assert overrides.scorer == {"max_num_batched_tokens": 512}


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    options = {
        "policy_engine": ["max-model-len=4096", "kv_cache_dtype=fp8"],
        "reference_engine": ["dtype=float16"],
        "reward_engine": ["max_num_seqs=8", "helpfulness.max_num_seqs=4"],
        "scorer_engine": ["max_num_batched_tokens=256"],
    }
    overrides = read(tmp_path, **options)
    assert overrides.policy.items() >= {"max_model_len": 4096, "kv_cache_dtype": "fp8"}.items()
    assert overrides.policy["tensor_parallel_size"] == 2
    assert overrides.reference == {"dtype": "float16"}
    assert [own["max_num_seqs"] for own in overrides.rewards.values()] == [4, 8]
    assert overrides.scorer == {"max_num_batched_tokens": 256}


def test_values_have_the_types_that_vllm_expects() -> None:
    overrides = read(
        policy_engine={
            "hf_overrides": {"rope_theta": 1e6},
            "device_ids": [0, 1],
            "block_size": None,
            "limit_mm_per_prompt": {"image": 0},
            "cudagraph_capture_sizes": [1, 2],
        }
    )
    assert overrides.policy["hf_overrides"] == {"rope_theta": 1e6}
    assert overrides.policy["device_ids"] == [0, 1]
    assert overrides.policy["block_size"] is None
    assert overrides.policy["cudagraph_capture_sizes"] == [1, 2]


def test_without_settings_vllm_decides_nothing_else() -> None:
    assert read() == Overrides(rewards={name: {} for name in REWARDS})


def test_an_unknown_name_is_refused_with_those_nearby(tmp_path: Path) -> None:
    assert refusal(policy_engine=["tensor_paralel_size=2"]).startswith(
        "--policy-engine: got 'tensor_paralel_size', accepted: a setting of vLLM's engines; "
        "did you mean tensor_parallel_size or "
    )
    assert refusal(reward_engine=["safety.quux=2"]) == (
        "--reward-engine safety: got 'quux', accepted: a setting of vLLM's engines"
    )
    assert "did you mean policy?" in refusal(tmp_path, "polcy: {dtype: auto}")
    assert refusal(tmp_path, "rewards: {harm: {dtype: auto}}").startswith("rewards.harm: got 'dtype', accepted: ")
    assert refusal(tmp_path, "policy: {dtpe: auto}").startswith("policy: got 'dtpe', accepted: ")


def test_a_value_that_vllm_does_not_parse_is_refused() -> None:
    message = refusal(policy_engine=["tensor_parallel_size=two"])
    assert message.startswith("--policy-engine tensor_parallel_size: got 'two', accepted: what vLLM takes (")
    assert "int" in message
    assert "fp8" in refusal(policy_engine=["kv_cache_dtype=fp7"])
    assert refusal(policy_engine=["compilation_config={modee: 3}"]).endswith("(modee Unexpected keyword argument)")
    assert refusal(policy_engine=["enable_prefix_caching=maybe"]).startswith("--policy-engine enable_prefix_caching")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model", "the bundle says"),
        ("seed", "every candidate has a seed of its own"),
        ("distributed_executor_backend", "end with the server"),
        ("enable-lora", "--max-adapters"),
        ("enable_chunked_prefill", "a seeded draw ends the engine"),
        ("speculative_config", "another response each time"),
        ("pipeline_parallel_size", "tensor_parallel_size works"),
        ("trust_remote_code", "is never run"),
    ],
)
def test_what_the_server_depends_on_is_fixed(name: str, reason: str) -> None:
    assert reason in refusal(policy_engine=[f"{name}=true"])


def test_a_reward_model_may_read_in_steps() -> None:
    assert read(reward_engine=["enable_chunked_prefill=false"]).rewards["safety"] == {"enable_chunked_prefill": False}


def test_reference_and_scorer_have_settings_only_if_they_have_an_engine() -> None:
    for role in ("reference", "scorer"):
        assert refusal(has_reference=False, has_scorer=False, **{f"{role}_engine": ["dtype=auto"]}) == (
            f"--{role}-engine: got 'dtype', accepted: settings of an engine of this bundle: "
            "policy, reward.helpfulness, reward.safety"
        )


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refusal(engines=tmp_path / "none.yaml").startswith("--engines: got ")
    assert refusal(tmp_path, "- policy").endswith("accepted: a YAML mapping")
    assert refusal(tmp_path, "policy: [").startswith("--engines: got ")
    assert refusal(tmp_path, "policy: 3").startswith("policy: got 3, accepted: ")


@pytest.mark.parametrize("text", ["max_model_len", "=3", "a: b: c", "x=[", ""])
def test_an_option_that_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^--policy-engine: got .*, accepted: KEY=VALUE"):
        parse_settings({"policy_engine": (text,)})


def test_vllm_servers_have_settings_of_their_own(tmp_path: Path) -> None:
    urls = {"policy_urls": "http://a", "reward_urls": "http://b"}
    with pytest.raises(InvalidValue, match=r"^--policy-engine: .* accepted: none beside --policy-urls: vLLM servers"):
        parse_settings({**urls, "policy_engine": ("dtype=auto",)})
    with pytest.raises(InvalidValue, match=r"^--engines: .* accepted: none beside --policy-urls"):
        parse_settings({**urls, "engines": str(tmp_path)})


def settings_of(*arguments: str) -> Settings:
    """The settings of a command line."""
    params = dict(serve.make_context("serve", list(arguments)).params)
    del params["bundle"], params["reference"]
    return parse_settings(params)


def test_an_option_may_be_repeated_and_the_environment_has_a_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of("--policy-engine", "max_model_len=64", "--policy-engine", "speculative_config={method: ngram}")
    assert given.policy_engine == {"max_model_len": 64, "speculative_config": {"method": "ngram"}}
    monkeypatch.setenv("INFALIGN_POLICY_ENGINE", "{max_model_len: 64, dtype: float16}")
    monkeypatch.setenv("INFALIGN_REWARD_ENGINE", "safety.dtype=float16")
    assert settings_of().policy_engine == {"max_model_len": 64, "dtype": "float16"}
    assert settings_of().reward_engine == {"safety.dtype": "float16"}
    assert settings_of("--policy-engine", "dtype=auto").policy_engine == {"dtype": "auto"}
