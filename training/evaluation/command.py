"""What ``infalign evaluate`` does: measure a bundle again, on its own test prompts or on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infalign.bundle import Bundle, read_bundle
from infalign.errors import InvalidValue
from infalign.manifest import SamplingLaw
from infalign.plots import check_path, save
from infalign.procedures import parse_procedure
from infalign.templates import Message, render_prompt, tokenise
from training.data import examples, tokenizer_check
from training.data.defects import Defect
from training.data.files import lines
from training.evaluation import report
from training.evaluation.draws import collect
from training.evaluation.figures import Evaluation, check_draws, evaluate, procedures_of
from training.judges import load_judge
from training.sampler import Sampler, load_pair
from training.scorer import CombinedScorer


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how."""

    bundle: Path
    policy: str | None
    """Its name; the bundle's default if None."""
    prompts: Path | None
    """Rows like those of ``data.prompts`` in training; the bundle's own test prompts if None."""
    limit: int | None
    draws: int
    ns: tuple[int, ...]
    judge: str | None
    judge_output: int | None
    """Which output of the judge is its score; left out where it has one."""
    engine: str
    seed: int
    plot: Path | None


def run(request: Request) -> Evaluation:
    """Measure, and draw the picture if one is asked for.

    Raises:
        BundleError: there is no intact bundle, or its reward models give other rewards here.
        InvalidValue: prompts that cannot be used, too few draws for an N, or a judge that is none.
    """
    bundle = read_bundle(request.bundle)
    chosen = bundle.policy(request.policy)
    trained_for = parse_procedure(chosen.record.procedure)
    procedures = procedures_of(trained_for, request.ns)
    check_draws(request.draws, procedures)
    if request.plot:
        check_path(request.plot)
    if request.judge_output is not None and not request.judge:
        raise InvalidValue("--judge-output", request.judge_output, "a judge to go with it: --judge")
    judge = load_judge(request.judge, request.judge_output) if request.judge else None
    law = bundle.manifest.sampling
    policy, reference = load_pair(chosen.directory, bundle.reference, law)
    prompts = read_prompts(request.prompts or chosen.evaluation / report.PROMPTS, policy, request.limit)
    scorer = CombinedScorer.load(bundle.reward_model, bundle.combination, bundle.reference)
    _check_rewards(bundle, scorer)
    drawers = None
    if request.engine == "vllm":
        theirs = _OneAtATime(bundle.reference, None, law)
        if chosen.is_adapter:
            drawers = _OneAtATime(bundle.reference, chosen.directory, law), theirs
        else:
            drawers = _OneAtATime(chosen.directory, None, law), theirs
    drawn = collect(policy, reference, scorer, judge, prompts, request.draws, request.seed, drawers)
    samples = bundle.table.samples
    found = evaluate(drawn, procedures, chosen.record.transformation, trained_for, samples)
    if request.plot:
        shown = [str(procedure) for procedure in procedures]
        save(report.picture(found, samples, shown), request.plot, report.measured(found))
    return found


def _check_rewards(bundle: Bundle, scorer: CombinedScorer) -> None:
    """See that the reward models give the rewards that the bundle was calibrated with. Raises RewardMismatch."""
    prompts = [example.prompt for example in bundle.examples]
    rewards = scorer.scorers.score(prompts, [example.response for example in bundle.examples])
    for reproduction, of_model in zip(bundle.reproductions.values(), rewards.T, strict=True):
        reproduction.compare(of_model.tolist(), range(len(prompts)))


def read_prompts(path: Path, policy: Sampler, limit: int | None) -> list[Sequence[Message]]:
    """The different prompts of a file, the first ``limit`` of them.

    Raises:
        InvalidValue: no such file, a row that cannot be used, or a prompt that leaves no room for a response.
    """
    found: list[Sequence[Message]] = []
    check = tokenizer_check(policy.tokenizer)
    room = policy.model.config.max_position_embeddings - policy.law.max_tokens
    for number, row in enumerate(lines([str(path)]), 1):
        where = f"{path}, row {number}"
        try:
            example = examples.read_row(row, examples.prompts)
            check(example)
        except Defect as defect:
            raise InvalidValue(where, str(defect), '{"prompt": text or messages}, or the text alone') from defect
        prompt = example.prompt
        length = len(tokenise(policy.tokenizer, render_prompt(policy.tokenizer, prompt)))
        if length > room:
            raise InvalidValue(where, f"{length} tokens", f"{room} at most, to leave room for {policy.law.max_tokens}")
        if prompt not in found:
            found.append(prompt)
        if len(found) == limit:
            break
    if not found:
        raise InvalidValue("prompts", str(path), "at least one prompt")
    return found


class _OneAtATime:
    """A vLLM engine that is started when it draws and stopped after: two would share one GPU's memory."""

    def __init__(self, directory: Path, adapter: Path | None, law: SamplingLaw) -> None:
        self.directory, self.adapter, self.law = directory, adapter, law

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = "draws") -> list[list[int]]:
        from training.vllm_sampler import VllmSampler

        engine = VllmSampler.load(self.directory, self.law, self.adapter)
        try:
            return engine.draw(prompts, seed, stage)
        finally:
            engine.close()
