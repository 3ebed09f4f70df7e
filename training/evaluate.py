"""Stage ``evaluate``: compares the policy with the reference on test prompts."""

from pathlib import Path

from infalign.manifest import SamplingLaw
from infalign.parsing import parse_mixture
from infalign.storage import load_calibration
from training.answers import ScoredTexts
from training.config import Evaluation
from training.data import read_prompts
from training.evaluation import report
from training.evaluation.draws import collect, save_draws
from training.evaluation.figures import compute_evaluation, count_draws, procedures_of
from training.judges import load_judge
from training.sampler import load_pair
from training.scorer import CombinedScorer


def evaluate_policy(
    directory: Path,
    *,
    data: Path,
    policy: Path,
    reference: Path,
    reward: Path,
    calibration: Path,
    procedure: str,
    transformation: str,
    law: SamplingLaw,
    config: Evaluation,
    samples: int,
    judge: str | Path | None,
    judge_output: int | None,
    seed: int,
) -> None:
    """Draw from policy and reference, and write the draws and the figures of an evaluation.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        policy: Directory of the policy: a model, or an adapter on the reference.
        reference: Directory of the reference model.
        reward: Directory of the reward model, or of several.
        calibration: Directory of the stage ``calibrate``.
        procedure: Decoding procedure that the policy was trained for, or a mixture of several.
        transformation: Transformation that the policy was trained with.
        law: Sampling law of policy and reference.
        config: How much is drawn.
        samples: K, the rewards per prompt in the calibration. The theoretical win rate depends on it.
        judge: Judge, as :func:`training.judges.load_judge` takes it, or None for no judge.
        judge_output: Which output of the judge is the score, if it has several.
        seed: Seed of the stage.
    """
    trained_for = parse_mixture(procedure)
    procedures = procedures_of(trained_for)
    prompts = read_prompts(data, "test")[: config.prompts]
    combination, record = load_calibration(calibration)
    draws = collect(
        *load_pair(policy, reference, law),
        CombinedScorer.load(reward, combination, reference),
        load_judge(str(judge), judge_output) if judge else None,
        prompts,
        config.draws or max(map(count_draws, procedures)),
        seed,
        texts=ScoredTexts.load(record.reasoning_parser, reference),
    )
    save_draws(directory, draws)
    report.write_report(
        directory, compute_evaluation(draws, procedures, transformation, trained_for, samples), prompts, samples
    )
    report.write_prompts(directory, read_prompts(data, "validation"), report.VALIDATION)
