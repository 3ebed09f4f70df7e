"""From a bundle and the settings to what the application is made of."""

from infalign.bundle import Bundle, positions, reward_models
from server.app import Served
from server.engines import Engines
from server.engines.trial import EnginesOnTrial, reward_trials
from server.settings import Settings


def assemble(bundle: Bundle, settings: Settings, reference: bool = False) -> tuple[Engines, Served]:
    """Engines that are not started yet, and what is served by them: the reference in the policy's place if told so.

    Raises:
        InvalidValue: addresses of servers that do not fit the bundle.
    """
    from transformers import AutoTokenizer

    adapters = {name: policy.directory for name, policy in bundle.policies.items() if policy.is_adapter}
    if reference:
        adapters = {}
    aligned = {name: policy.record.procedure for name, policy in bundle.policies.items()}
    policies = {f"{bundle.manifest.name}-reference": "standard"} if reference else aligned
    model = bundle.reference if reference or adapters else bundle.policy().directory
    scoring = reward_models(bundle.reward_model)
    judging = {name: AutoTokenizer.from_pretrained(path) for name, path in scoring.items()}
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
    return engines, Served(bundle, (AutoTokenizer.from_pretrained(model), judging), policies)
