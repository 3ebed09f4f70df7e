"""Stage ``evaluate``: win rates of the policy over the reference on test prompts, with KL, theory and a judge."""

from pathlib import Path

from infalign.bundle import load_calibration
from infalign.manifest import SamplingLaw
from infalign.procedures import parse_procedure
from training import data
from training.evaluation import report
from training.evaluation.draws import collect, save_draws
from training.evaluation.figures import enough_draws, evaluate, procedures_of
from training.judges import load_judge
from training.sampler import load_pair
from training.scorer import CombinedScorer


def measure(
    directory: Path,
    data_directory: Path,
    policy: Path,
    reference: Path,
    reward: Path,
    calibration: Path,
    procedure: str,
    transformation: str,
    law: SamplingLaw,
    samples: int,
    judge: str | None,
    seed: int,
) -> None:
    """Draw from the models in ``policy`` and ``reference``, and write draws and figures into ``directory``.

    ``samples`` is K of the calibration, for theory's part; ``judge`` as :func:`training.judges.load_judge` takes it.
    """
    trained_for = parse_procedure(procedure)
    procedures = procedures_of(trained_for)
    prompts = data.read_prompts(data_directory, "test")
    draws = collect(
        *load_pair(policy, reference, law),
        CombinedScorer.load(reward, load_calibration(calibration)[0], reference),
        load_judge(judge) if judge else None,
        prompts,
        max(map(enough_draws, procedures)),
        seed,
    )
    save_draws(directory, draws)
    report.write(directory, evaluate(draws, procedures, transformation, trained_for, samples), prompts, samples)
