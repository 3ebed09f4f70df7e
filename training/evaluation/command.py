"""The work of ``infalign evaluate``: evaluates a bundle on its own test prompts or on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infalign.bundle import Bundle, BundledPolicy, read_bundle
from infalign.errors import InvalidValue
from infalign.files import reward_models
from infalign.manifest import SamplingLaw
from infalign.parsing import parse_mixture
from infalign.plots import check_path, save
from infalign.rewards import check_trust
from infalign.templates import Message, render_prompt, tokenise
from training.answers import ScoredTexts
from training.data import make_tokenizer_check
from training.data.defects import Defect
from training.data.examples import parse_prompt, read_row
from training.data.files import read_files
from training.evaluation import report
from training.evaluation.draws import collect
from training.evaluation.figures import Evaluation, check_draws, compute_evaluation, procedures_of
from training.judges import Judge, load_judge
from training.sampler import Sampler, load_pair
from training.scorer import CombinedScorer


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how."""

    bundle: Path
    """Directory of the bundle."""
    policy: str | None
    """Name of the policy, or None for the bundle's default."""
    prompts: Path | None
    """File with rows as in ``data.prompts`` of a config, or None for the bundle's own test prompts."""
    limit: int | None
    """Prompts at most."""
    draws: int
    """Responses per prompt and model."""
    ns: tuple[int, ...]
    """Values of n for best-of-n and worst-of-n."""
    judge: str | None
    """Judge, as :func:`training.judges.load_judge` takes it."""
    judge_output: int | None
    """Which output of the judge is its score. It may be left out if there is only one."""
    engine: str
    """Library that draws: ``vllm`` or ``transformers``."""
    seed: int
    """Seed of the draws."""
    plot: Path | None
    """File of the picture, if one is wanted."""
    trust_rewards: bool = False
    """Whether rewards that are not classifiers may run."""

    def load_judge(self) -> Judge | None:
        """Load the judge, if there is one.

        Raises:
            InvalidValue: There is no such judge.
        """
        if self.judge_output is not None and not self.judge:
            raise InvalidValue("--judge-output", self.judge_output, "a judge to go with it: --judge")
        return load_judge(self.judge, self.judge_output) if self.judge else None


def evaluate_bundle(request: Request) -> Evaluation:
    """Evaluate a bundle, and draw the picture if one is wanted.

    Args:
        request: What is evaluated.

    Raises:
        BundleError: There is no intact bundle, or its reward models give other rewards on this machine.
        InvalidValue: Prompts cannot be used, there are too few draws for an n, or there is no such judge.
    """
    bundle = read_bundle(request.bundle)
    check_trust(reward_models(bundle.reward_model), request.trust_rewards)
    policy_part = bundle.policy(request.policy)
    transformation = policy_part.record.transformation
    if transformation is None:
        accepted = f"a bundle with an aligned policy; {policy_part.name} was not aligned here"
        raise InvalidValue("BUNDLE", str(request.bundle), accepted)
    trained_for = parse_mixture(policy_part.record.procedure)
    procedures = procedures_of(trained_for, request.ns)
    check_draws(request.draws, procedures)
    if request.plot:
        check_path(request.plot)
    judge = request.load_judge()
    law = bundle.manifest.sampling
    policy, reference = load_pair(policy_part.directory, bundle.reference, law)
    prompts = read_evaluation_prompts(request.prompts or policy_part.evaluation / report.PROMPTS, policy, request.limit)
    scorer = CombinedScorer.load(bundle.reward_model, bundle.combination, bundle.reference)
    check_rewards(bundle, scorer)
    texts = ScoredTexts.load(bundle.calibration.reasoning_parser, bundle.reference)
    drawers = None
    if request.engine == "vllm":
        drawers = TransientEngine.of(bundle, policy_part), TransientEngine(bundle.reference, None, law)
    draws = collect(policy, reference, scorer, judge, prompts, request.draws, request.seed, drawers, texts)
    samples = bundle.table.samples
    evaluation = compute_evaluation(draws, procedures, transformation, trained_for, samples)
    if request.plot:
        names = [str(procedure) for procedure in procedures]
        save(report.draw_picture(evaluation, samples, names), request.plot, report.select_figures(evaluation))
    return evaluation


def check_rewards(bundle: Bundle, scorer: CombinedScorer) -> None:
    """Check that the reward models give the rewards that the bundle was calibrated with, or raise RewardMismatch."""
    prompts = [example.prompt for example in bundle.examples]
    rewards = scorer.scorers.score(prompts, [example.response for example in bundle.examples])
    for reproduction, of_model in zip(bundle.reproductions.values(), rewards.T, strict=True):
        reproduction.compare(of_model.tolist(), range(len(prompts)))


def read_evaluation_prompts(path: Path, policy: Sampler, limit: int | None) -> list[Sequence[Message]]:
    """Read different prompts from a file.

    Args:
        path: The file.
        policy: The policy, whose context bounds the length of a prompt.
        limit: Prompts at most.

    Raises:
        InvalidValue: There is no such file, a row cannot be used, or a prompt leaves no room for a response.
    """
    prompts: list[Sequence[Message]] = []
    check = make_tokenizer_check(policy.tokenizer)
    room = policy.model.config.get_text_config().max_position_embeddings - policy.law.max_tokens
    for number, row in enumerate(read_files([str(path)]), 1):
        where = f"{path}, row {number}"
        try:
            example = read_row(row, parse_prompt)
            check(example)
        except Defect as defect:
            raise InvalidValue(where, str(defect), '{"prompt": text or messages}, or the text alone') from defect
        prompt = example.prompt
        length = len(tokenise(policy.tokenizer, render_prompt(policy.tokenizer, prompt)))
        if length > room:
            raise InvalidValue(where, f"{length} tokens", f"{room} at most, to leave room for {policy.law.max_tokens}")
        if prompt not in prompts:
            prompts.append(prompt)
        if len(prompts) == limit:
            break
    if not prompts:
        raise InvalidValue("prompts", str(path), "at least one prompt")
    return prompts


class TransientEngine:
    """A vLLM engine that runs only while it draws. Two engines would have to share the memory of one GPU."""

    def __init__(self, directory: Path, adapter: Path | None, law: SamplingLaw) -> None:
        self.directory, self.adapter, self.law = directory, adapter, law

    @classmethod
    def of(cls, bundle: Bundle, policy: BundledPolicy) -> "TransientEngine":
        """The engine of a policy."""
        if policy.is_adapter:
            return cls(bundle.reference, policy.directory, bundle.manifest.sampling)
        return cls(policy.directory, None, bundle.manifest.sampling)

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = "draws") -> list[list[int]]:
        """Draw one response to each prompt."""
        from training.vllm_sampler import VllmSampler

        engine = VllmSampler.load(self.directory, self.law, self.adapter)
        try:
            return engine.draw(prompts, seed, stage)
        finally:
            engine.close()
