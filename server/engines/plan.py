"""The plan of the engines: which models they run, with which options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue
from infalign.files import context_length
from server.engines.launch import Launch, check_memory, prepare_launch
from server.engines.outputs import BACKEND
from server.engines.overrides import NONE, Overrides
from server.engines.tuning import EngineOptions
from server.settings import Settings


@dataclass(frozen=True)
class Plan:
    """The models of a bundle, and the settings of their engines."""

    policy: Path
    """Directory of the policy."""
    reference: Path
    """Directory of the reference. If it is not the policy's, the reference gets an engine of its own."""
    rewards: tuple[Path, ...]
    """Directories of the reward models."""
    settings: Settings
    """The operator's settings."""
    scorer: Path | None = None
    """Directory of the prefix scorer, if there is one. It gets an engine of its own."""
    overrides: Overrides = field(default_factory=Overrides)
    """What the operator sets by vLLM's names."""

    @property
    def has_reference(self) -> bool:
        """Whether the reference has an engine of its own."""
        return self.policy != self.reference

    @property
    def reward_overrides(self) -> list[Mapping[str, Any]]:
        """What the operator sets for each reward model, in their order."""
        return list(self.overrides.rewards.values()) or [NONE] * len(self.rewards)

    @property
    def context(self) -> int:
        """The context of all engines, in tokens: the smallest of the models' and of those that the operator sets."""
        engines = [(self.policy, self.overrides.policy), *zip(self.rewards, self.reward_overrides, strict=True)]
        if self.has_reference:
            engines.append((self.reference, self.overrides.reference))
        if self.scorer:
            engines.append((self.scorer, self.overrides.scorer))
        return min(_context(model, own) for model, own in engines)

    def prepare(self, is_cpu: bool, adapter_options: Mapping[str, Any]) -> list[Launch]:
        """Configure all engines, so that nothing is loaded if vLLM refuses one of them.

        Args:
            is_cpu: Whether the engines run on CPU.
            adapter_options: Options of the policy's engine for its adapters.

        Returns:
            The engines to launch at the start: the policy and the reward models.

        Raises:
            InvalidValue: Settings do not fit together.
            EngineFailed: VLLM refuses the settings of an engine.
            TooLittleMemory: The engines do not fit into memory.
        """
        from vllm.config import StructuredOutputsConfig

        options = EngineOptions(self.settings, self.context, is_cpu)
        # Without a choice, vLLM would use the backend of the first request for all later ones.
        structures = StructuredOutputsConfig(backend=BACKEND, reasoning_parser=self.settings.reasoning_parser or "")
        structure_options = {"structured_outputs_config": structures}
        policy_options = {**options.policy(self.overrides.policy), **structure_options, **adapter_options}
        launches = [prepare_launch("policy", self.policy, policy_options, self.settings)]
        for model, own in zip(self.rewards, self.reward_overrides, strict=True):
            reward_options = options.reward(len(self.rewards), own)
            launches.append(prepare_launch(f"reward model {model.name}", model, reward_options, self.settings))
        if self.has_reference:
            self.prepare_reference(is_cpu)
        if self.scorer:
            self.prepare_scorer(is_cpu)
        check_memory(launches)
        return launches

    def prepare_reference(self, is_cpu: bool) -> Launch:
        """Configure the reference's engine.

        Args:
            is_cpu: Whether it runs on CPU.

        Raises:
            InvalidValue: Settings do not fit together.
            EngineFailed: VLLM refuses the settings.
        """
        options = EngineOptions(self.settings, self.context, is_cpu).reference(self.overrides.reference)
        return prepare_launch("reference", self.reference, options, self.settings)

    def prepare_scorer(self, is_cpu: bool) -> Launch:
        """Configure the prefix scorer's engine.

        Args:
            is_cpu: Whether it runs on CPU.

        Raises:
            InvalidValue: There is no prefix scorer, or settings do not fit together.
            EngineFailed: VLLM refuses the settings.
        """
        if self.scorer is None:
            raise InvalidValue("scorer", None, "a bundle with a prefix scorer")
        options = EngineOptions(self.settings, self.context, is_cpu).scorer(self.overrides.scorer)
        return prepare_launch("prefix scorer", self.scorer, options, self.settings)


def _context(model: Path, own: Mapping[str, Any]) -> int:
    """The context of an engine, in tokens: the operator's, or else the model's."""
    length = own.get("max_model_len") or 0
    return int(length) if length > 0 else context_length(model)
