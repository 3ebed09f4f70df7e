"""Builds the engines and the served bundle from the settings."""

from pathlib import Path
from typing import Any

from infalign.bundle import Bundle
from infalign.errors import InvalidValue, one_line
from infalign.files import context_length, reward_models, score_values
from infalign.rewards import ReferenceJudge, check_trust, open_reward, read_reference_judges
from server.app import ServedBundle
from server.engines import Engines
from server.engines.trial import EnginesOnTrial, reward_trials
from server.settings import Settings


def assemble(bundle: Bundle, settings: Settings, reference: bool = False) -> tuple[Engines, ServedBundle]:
    """Create the engines for a bundle and describe what they serve.

    Args:
        bundle: The bundle to serve.
        settings: The operator's settings.
        reference: Serve the bundle's reference model in place of its policies.

    Returns:
        The engines, which are not started yet, and the bundle with its tokenizers and policy names.

    Raises:
        InvalidValue: The addresses of vLLM servers do not fit the bundle, a tokenizer cannot be loaded, or a reward
            that is not a model is not trusted or cannot be opened. Or the bundle was calibrated with another parser.
    """
    settings = settings.adopt_parser(bundle.calibration.reasoning_parser)
    all_rewards = reward_models(bundle.reward_model)
    external = check_trust(all_rewards, settings.trust_rewards)
    adapters = {name: policy.directory for name, policy in bundle.policies.items() if policy.is_adapter}
    if reference:
        adapters = {}
    procedures = {name: policy.record.procedure for name, policy in bundle.policies.items()}
    policies = {f"{bundle.manifest.name}-reference": "standard"} if reference else procedures
    policy_path = bundle.reference if reference or adapters else bundle.policy().directory
    judges = {
        name: ReferenceJudge.create(record, load_tokenizer(bundle.reference), f"the scores of the reward {name}")
        for name, record in read_reference_judges(all_rewards).items()
    }
    reward_paths = {name: path for name, path in all_rewards.items() if name not in {*external, *judges}}
    model_tokenizers = {name: load_tokenizer(path) for name, path in reward_paths.items()}
    reward_tokenizers = model_tokenizers | {name: judge.tokenizer for name, judge in judges.items()}
    trials = reward_trials(bundle, model_tokenizers)
    engines: Engines
    if settings.are_engines_elsewhere:
        from server.engines.remote import RemoteEngines

        context = min(map(context_length, (policy_path, *reward_paths.values())))
        are_reference = [name for name in policies if reference or bundle.policies[name].is_reference]
        if judges and not are_reference and not adapters and not settings.reference_urls:
            raise InvalidValue("--reference-urls", None, "servers of the reference, which is a judge of the bundle")
        if settings.scorer_urls and not bundle.scorer:
            given = ",".join(settings.scorer_urls)
            raise InvalidValue("--scorer-urls", given, "none: the bundle has no prefix scorer")
        engines = RemoteEngines(
            settings,
            tuple(policies),
            {name: score_values(path) for name, path in reward_paths.items()},
            context,
            next(iter(are_reference), None),
            bool(adapters),
            trials,
            scorer_outputs=2 * (len(bundle.scorer.edges) - 1) if bundle.scorer else 0,
        )
    else:
        from server.engines.overrides import read_overrides
        from server.engines.vllm import VllmEngines

        has_reference, has_scorer = policy_path != bundle.reference, bundle.scorer is not None
        overrides = read_overrides(settings, tuple(reward_paths), has_reference, has_scorer)
        paths = tuple(reward_paths.values())
        scorer = bundle.prefix_scorer if bundle.scorer else None
        local_engines = VllmEngines(
            policy_path, bundle.reference, paths, settings, adapters, overrides, bool(judges), scorer
        )
        engines = EnginesOnTrial(local_engines, list(trials.values()))
    rewards = {name: open_reward(name, record) for name, record in external.items()}
    tokenizers = load_tokenizer(policy_path), reward_tokenizers
    runs_scorer = bool(settings.scorer_urls) or not settings.are_engines_elsewhere
    return engines, ServedBundle(bundle, tokenizers, policies, rewards, judges, runs_scorer)


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a model.

    Raises:
        InvalidValue: The directory has no tokenizer, or the tokenizer needs code of its own, which is never run.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        requirement = f"a tokenizer that needs no code of its own ({one_line(error)})"
        raise InvalidValue("BUNDLE", str(directory), requirement) from error
