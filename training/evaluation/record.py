"""The work of ``infalign evaluate --record``: writes into a bundle how large N may be by a judge."""

from collections.abc import Sequence
from dataclasses import replace

from infalign.bundle import BundledPolicy, read_bundle
from infalign.bundling import keep_policy, rewrite_bundle
from infalign.errors import InvalidValue
from infalign.files import reward_models
from infalign.overoptimisation import LEAST_PROMPTS
from infalign.rewards import check_trust
from infalign.templates import Message
from training.answers import ScoredTexts
from training.card import replace_judge_section, write_judge_section
from training.evaluation import report
from training.evaluation.command import Request, TransientEngine, check_rewards, read_evaluation_prompts
from training.evaluation.figures import NS
from training.judged import judge_policy, make_record
from training.sampler import Sampler, load_policy
from training.scorer import CombinedScorer


def record_judge(request: Request, as_json: bool) -> str:
    """Ask a judge how large N may be, and write its record into the bundle and the model card.

    Args:
        request: What is evaluated. Its prompts are validation prompts; if it has none, those in the bundle are used.
        as_json: Whether the record is returned as JSON.

    Returns:
        The new section of the model card, or the record.

    Raises:
        BundleError: There is no intact bundle, or its reward models give other rewards on this machine.
        InvalidValue: There is no judge, or prompts are missing, too few or the bundle's test prompts.
    """
    for option, given in (("--plot", request.plot), ("-n", request.ns != NS)):
        if given:
            raise InvalidValue("--record", "true", f"no {option} beside it: it looks at every N up to --draws")
    judge = request.load_judge()
    if not judge or not request.judge:
        raise InvalidValue("--record", "true", "a judge to go with it: --judge")
    bundle = read_bundle(request.bundle)
    check_trust(reward_models(bundle.reward_model), request.trust_rewards)
    policy = bundle.policy(request.policy)
    law = bundle.manifest.sampling
    if policy.is_reference:
        sampler = Sampler.load(bundle.reference, law)
    else:
        sampler = load_policy(policy.directory, bundle.reference, law)
    prompts = _read_prompts(request, policy, sampler)
    scorer = CombinedScorer.load(bundle.reward_model, bundle.combination, bundle.reference)
    check_rewards(bundle, scorer)
    texts = ScoredTexts.load(bundle.calibration.reasoning_parser, bundle.reference)
    drawer = TransientEngine.of(bundle, policy) if request.engine == "vllm" else None
    side = judge_policy(sampler, scorer, judge, prompts, request.draws, request.seed, drawer, texts)
    record = make_record(request.judge, side)
    policies = {name: keep_policy(each) for name, each in bundle.policies.items()}
    alignment = policy.record.model_copy(update={"judged": record})
    policies[policy.name] = replace(policies[policy.name], alignment=alignment)
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    rewrite_bundle(bundle, policies=policies, card=replace_judge_section(card, policy.name, record))
    if as_json:
        return record.model_dump_json(indent=1) + "\n"
    return write_judge_section(policy.name, record).lstrip()


def _read_prompts(request: Request, policy: BundledPolicy, sampler: Sampler) -> list[Sequence[Message]]:
    """Read the validation prompts, and check that no test prompt is among them."""
    path, tested = request.prompts or policy.evaluation / report.VALIDATION, policy.evaluation / report.PROMPTS
    if not path.is_file():
        raise InvalidValue("PROMPTS", "none", "a file of validation prompts, as this bundle has none")
    prompts = read_evaluation_prompts(path, sampler, request.limit)
    test_prompts = read_evaluation_prompts(tested, sampler, None) if tested.is_file() else []
    if any(prompt in test_prompts for prompt in prompts):
        raise InvalidValue("PROMPTS", str(path), "none of the bundle's test prompts, which judge the result")
    if len(prompts) < LEAST_PROMPTS:
        raise InvalidValue("PROMPTS", f"{len(prompts)} prompts", f"at least {LEAST_PROMPTS}")
    return prompts
