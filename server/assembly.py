"""From a bundle and the settings to what the application is made of."""

from pathlib import Path
from typing import Any

from infalign.bundle import Bundle, positions, reward_models
from infalign.errors import InvalidValue, one_line
from server.app import Served
from server.engines import Engines
from server.engines.trial import EnginesOnTrial, reward_trials
from server.settings import Settings


def assemble(bundle: Bundle, settings: Settings, reference: bool = False) -> tuple[Engines, Served]:
    """Engines that are not started yet, and what is served by them: the reference in the policy's place if told so.

    Raises:
        InvalidValue: addresses of servers that do not fit the bundle, or a tokenizer that cannot be loaded.
    """
    adapters = {name: policy.directory for name, policy in bundle.policies.items() if policy.is_adapter}
    if reference:
        adapters = {}
    aligned = {name: policy.record.procedure for name, policy in bundle.policies.items()}
    policies = {f"{bundle.manifest.name}-reference": "standard"} if reference else aligned
    model = bundle.reference if reference or adapters else bundle.policy().directory
    scoring = reward_models(bundle.reward_model)
    judging = {name: load_tokenizer(path) for name, path in scoring.items()}
    trials = reward_trials(bundle, judging)
    engines: Engines
    if settings.policy_urls or settings.reward_urls or settings.reference_urls:
        from server.engines.remote import RemoteEngines

        context = min(map(positions, (model, *scoring.values())))
        itself = next(iter(policies)) if reference else None
        engines = RemoteEngines(settings, tuple(policies), tuple(scoring), context, itself, bool(adapters), trials)
    else:
        from server.engines.vllm import VllmEngines

        ours = VllmEngines(model, bundle.reference, tuple(scoring.values()), settings, adapters)
        engines = EnginesOnTrial(ours, list(trials.values()))
    return engines, Served(bundle, (load_tokenizer(model), judging), policies)


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model.

    Raises:
        InvalidValue: there is none, or it brings code of its own, which is not run.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        accepted = f"a tokenizer that needs no code of its own ({one_line(error)})"
        raise InvalidValue("BUNDLE", str(directory), accepted) from error
