"""Settings of the engines by vLLM's own names: from the file of ``--engines`` and from the command line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from infalign.errors import InvalidValue
from infalign.validation import explain
from infalign.values import read_yaml
from server.engines.environment import prepare_environment
from server.engines.failure import explain as explain_refusal
from server.settings import Settings

_BUNDLE = "the bundle says which models are served"
_SAMPLING = "requests and the bundle's sampling law decide how candidates are drawn"
_ADAPTERS = "the bundle's adapters decide, and --max-adapters"
_MACHINE = "the engines run on this machine; for others, see --policy-urls"
_LOG = "the server writes the log; VLLM_LOGGING_LEVEL in the environment says how much vLLM adds"
FIXED = {
    "code_revision": _BUNDLE,
    "config_format": _BUNDLE,
    "hf_config_path": _BUNDLE,
    "model": _BUNDLE,
    "model_weights": _BUNDLE,
    "revision": _BUNDLE,
    "tokenizer": _BUNDLE,
    "tokenizer_mode": _BUNDLE,
    "tokenizer_revision": _BUNDLE,
    "trust_remote_code": "code that comes with a model is never run",
    "convert": "the engine's role decides",
    "runner": "the engine's role decides",
    "scheduler_cls": "the server's own scheduler lets reward models use their whole context",
    "skip_tokenizer_init": "the policy's engine writes text",
    "generation_config": _SAMPLING,
    "override_generation_config": _SAMPLING,
    "seed": "every candidate has a seed of its own",
    "logprobs_mode": "log-probabilities are the model's own",
    "structured_outputs_config": "JSON schemas are checked for vLLM's backend xgrammar",
    "enable_lora": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "distributed_executor_backend": "the server's own executors end with the server",
    "data_parallel_backend": _MACHINE,
    "data_parallel_external_lb": _MACHINE,
    "data_parallel_hybrid_lb": _MACHINE,
    "data_parallel_rank": _MACHINE,
    "data_parallel_size_local": _MACHINE,
    "data_parallel_start_rank": _MACHINE,
    "nnodes": _MACHINE,
    "node_rank": _MACHINE,
    "disable_log_stats": "vLLM's metrics are those of the policy's engine",
    "enable_log_requests": "--log-text logs prompts",
    "log_config_file": _LOG,
    "log_level": _LOG,
    "logging_config": _LOG,
}
"""Why the operator cannot set some of vLLM's settings."""
FIXED_ON_CPU = {"pipeline_parallel_size": "on CPU, vLLM's engine ends at its first request; tensor_parallel_size works"}
"""The same on CPU."""
_SPECULATION = "on CPU, a seed would give another response each time"
FIXED_DRAWS_ON_CPU = {
    "enable_chunked_prefill": "on CPU, a seeded draw ends the engine if its prompt is read in steps",
    "spec_method": _SPECULATION,
    "spec_model": _SPECULATION,
    "spec_tokens": _SPECULATION,
    "speculative_config": _SPECULATION,
}
"""The same on CPU for engines that generate."""
NEAR, MOST_NEAR = 0.6, 3
"""How similar a known name must be to be suggested for an unknown one, from 0 to 1, and how many are suggested."""
NOISE = re.compile(r"^argument \S+: (\d+ validation errors? for \S+ )?| \[type=.*")
"""Parts of the messages of vLLM's parser that say nothing to an operator."""
NONE: Mapping[str, Any] = MappingProxyType({})
"""No settings."""


@dataclass(frozen=True)
class Overrides:
    """What the operator sets by vLLM's names, as keyword arguments of ``AsyncEngineArgs``."""

    policy: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the policies' engine."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the reference's engine."""
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of the reward models' engines, by the name of the model."""
    scorer: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the prefix scorer's engine."""


class _File(BaseModel):
    """The file of ``--engines``."""

    model_config = ConfigDict(extra="forbid")

    policy: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    reward: dict[str, Any] = {}
    rewards: dict[str, dict[str, Any]] = {}
    scorer: dict[str, Any] = {}


def read_overrides(
    settings: Settings, reward_models: Sequence[str], has_reference: bool, has_scorer: bool = False
) -> Overrides:
    """Read and check the operator's settings of the engines. The command line wins over the file.

    VLLM is imported only if there are any.

    Args:
        settings: The operator's settings.
        reward_models: Names of the reward models.
        has_reference: Whether the reference has an engine of its own.
        has_scorer: Whether there is a prefix scorer.

    Raises:
        InvalidValue: The file cannot be read, or a name or value is not accepted. The message names nearby names.
    """
    file = _read_file(settings)
    sources = [
        ("policy", "policy", file.policy),
        ("--policy-engine", "policy", settings.policy_engine),
        ("reference", "reference", file.reference),
        ("--reference-engine", "reference", settings.reference_engine),
        *(("reward", f"reward.{name}", file.reward) for name in reward_models),
        *((f"rewards.{name}", f"reward.{name}", values) for name, values in file.rewards.items()),
        *_reward_options(settings.reward_engine, reward_models),
        ("scorer", "scorer", file.scorer),
        ("--scorer-engine", "scorer", settings.scorer_engine),
    ]
    merged: dict[str, dict[str, Any]] = {"policy": {}, **{f"reward.{name}": {} for name in reward_models}}
    if has_reference:
        merged["reference"] = {}
    if has_scorer:
        merged["scorer"] = {}
    names: _Names | None = None
    for source, engine, values in sources:
        if not values:
            continue
        if engine not in merged:
            raise InvalidValue(source, ", ".join(values), f"settings of an engine of this bundle: {', '.join(merged)}")
        names = names or _Names()
        merged[engine] |= names.check(source, values, generates=engine in ("policy", "reference"))
    rewards = {name: merged[f"reward.{name}"] for name in reward_models}
    return Overrides(merged["policy"], merged.get("reference", {}), rewards, merged.get("scorer", {}))


def _read_file(settings: Settings) -> _File:
    if settings.engines is None:
        return _File()
    try:
        return _File.model_validate(read_yaml(settings.engines, "--engines"))
    except ValidationError as error:
        raise explain(error.errors(), _File) from error


def _reward_options(
    values: Mapping[str, Any], reward_models: Sequence[str]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield ``--reward-engine`` by reward model: first the settings of all, then those of one."""
    longest = sorted(reward_models, key=len, reverse=True)
    named = {key: next((name for name in longest if key.startswith(f"{name}.")), None) for key in values}
    for name in reward_models:
        yield "--reward-engine", f"reward.{name}", {key: values[key] for key in values if named[key] is None}
    for key, owner in named.items():
        if owner is not None:
            yield f"--reward-engine {owner}", f"reward.{owner}", {key.removeprefix(f"{owner}."): values[key]}


class _Names:
    """VLLM's settings: their names, and its own parser for their values."""

    def __init__(self) -> None:
        prepare_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        class Parser(FlexibleArgumentParser):  # type: ignore[misc] # vLLM is not followed
            def error(self, message: str) -> Any:
                raise ValueError(message)

        self._parser = AsyncEngineArgs.add_cli_args(Parser())
        self._options = {action.dest: action for action in self._parser._actions}
        self._names = [one.name for one in fields(AsyncEngineArgs) if not one.name.startswith("_")]
        self._is_cpu = current_platform.is_cpu()

    def check(self, source: str, values: Mapping[str, Any], generates: bool) -> dict[str, Any]:
        """Check settings, and give their values the types that vLLM expects.

        Args:
            source: Where they come from, for errors.
            values: Values of YAML by name. In names, ``-`` is the same as ``_``.
            generates: Whether the engine generates, or scores.

        Raises:
            InvalidValue: A name is unknown or fixed, or a value is of the wrong form.
        """
        fixed = FIXED
        if self._is_cpu:
            fixed = FIXED | FIXED_ON_CPU | (FIXED_DRAWS_ON_CPU if generates else {})
        checked = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name in fixed:
                raise InvalidValue(source, key, f"other settings; {fixed[name]}")
            if name not in self._names:
                near = get_close_matches(name, self._names, MOST_NEAR, NEAR)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise InvalidValue(source, key, f"a setting of vLLM's engines{hint}")
            try:
                checked[name] = self._parse(name, value)
            except (ValueError, TypeError) as error:
                reason = NOISE.sub("", explain_refusal(error))
                raise InvalidValue(f"{source} {name}", value, f"what vLLM takes ({reason})") from error
        return checked

    def _parse(self, name: str, value: Any) -> Any:
        if value is None or name not in self._options:
            return value
        arguments = _arguments(name.replace("_", "-"), value, self._options[name].nargs is not None)
        return getattr(self._parser.parse_args(arguments), name)


def _arguments(option: str, value: Any, takes_several: bool) -> list[str]:
    """Write a value of YAML as vLLM's command line has it."""
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list) and takes_several:
        return [f"--{option}", *map(str, value)]
    if isinstance(value, dict):
        text = json.dumps(value)
    else:
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"--{option}={text}"]
