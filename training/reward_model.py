"""Stage ``reward``: trains a reward model on comparisons, adopts classifiers that already exist, or does both.

The trained model is a Bradley–Terry model: the probability that one response is better than another is the logistic
function of the difference of their rewards. In every model that the stage leaves, a high reward is good. If the output
of a classifier means harm, the sign of its last layer is turned once, so that no later code has to care about signs.

A single model is left in ``model/``, each of several in ``model/NAME/``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig, RewardTrainer

from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from infalign.templates import render_conversation, tokenise
from training import processes
from training.adoption import adopt_rewards
from training.config import Classifier, Compute, Optimiser, Reward
from training.data import HELD_OUT, PREFERENCES, read_lengths, read_rows
from training.figures import flatten_estimates
from training.memory import Pass, model_shape
from training.models import new_classifier
from training.reading import check_reading
from training.scorer import AnyScorer, Scorer, load_scorer
from training.supervised import Row, fit_rows

SIDES = ("chosen", "rejected")
"""Keys of the better and the worse response of a comparison."""
ACCURACY = "accuracy"
"""Start of the names of the files with accuracies."""
MODEL = "model"
"""Directory of the models."""


def make_reward_models(
    directory: Path,
    *,
    data: Path,
    reference: Path | None,
    config: Reward,
    compute: Compute,
    seed: int,
) -> None:
    """Make all reward models and measure each on the held-out comparisons.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        reference: Directory of the reference, from which a reward model is trained, or which is a judge. It may be
            None if neither is the case.
        config: Which reward models there are.
        compute: How the trainer uses the machine.
        seed: Seed of the stage: of the head's first weights and of the order of the rows.

    Raises:
        InvalidValue: A classifier cannot be used, or the comparisons contradict its sign.
    """
    several = len(config.models) > 1

    def locate(name: str) -> Path:
        return directory / MODEL / name if several else directory / MODEL

    if config.train and reference:
        train_reward_model(directory, data, reference, config.train, compute, seed, locate(config.train.name))
    if not processes.is_first():
        return
    if config.train:
        trained_model = locate(config.train.name)
        check_reading(
            Scorer.load(trained_model), "reward.train", str(trained_model), "Give model.base.pad_token another token"
        )
    adopt_rewards(config, locate, reference)
    for model in config.models:
        file = directory / (f"{ACCURACY}-{model.name}.json" if several else f"{ACCURACY}.json")
        measure_accuracy(locate(model.name), data, model if isinstance(model, Classifier) else None, file, reference)


def train_reward_model(
    directory: Path, data: Path, start: Path, config: Optimiser, compute: Compute, seed: int, target: Path
) -> None:
    """Train a Bradley–Terry model on the comparisons.

    Args:
        directory: Directory of the stage, for checkpoints and metrics.
        data: Directory of the stage ``data``.
        start: Directory of the model that training starts from.
        config: How the model learns.
        compute: How the trainer uses the machine.
        seed: Seed of the head's first weights and of the order of the rows.
        target: Directory that the model and its tokenizer are saved in.
    """
    set_seed(seed)
    longest = read_lengths(data)["comparison"].longest
    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    fit_rows(
        (RewardTrainer, RewardConfig),
        lambda: new_classifier(start),
        tokenizer,
        (tokenise_comparison(tokenizer, row) for row in read_rows(data / PREFERENCES)),
        directory=directory,
        target=target,
        stage="reward",
        config=config,
        estimate_pass=lambda model: Pass(
            model_shape(model), compute, longest, config.lora, sequences=len(SIDES), logits=False
        ),
        seed=seed,
        figures=("loss", "accuracy"),
        task="SEQ_CLS",
    )


def tokenise_comparison(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> Row:
    """Tokenise both sides of a comparison as TRL does, which takes four times as long.

    Args:
        tokenizer: Tokenizer of the reward model.
        row: A row of :data:`training.data.PREFERENCES`.

    Returns:
        ``chosen_ids`` and ``rejected_ids``, each with the prompt.
    """

    def tokenise_side(side: str) -> list[int]:
        (response,) = row[side]
        return tokenise(tokenizer, render_conversation(tokenizer, row["prompt"], response["content"]))

    return {f"{side}_ids": tokenise_side(side) for side in SIDES}


def measure_accuracy(
    model: Path, data: Path, classifier: Classifier | None, file: Path, reference: Path | None = None
) -> None:
    """Measure how often a reward model prefers the better of two responses, and write it into ``file``.

    The comparisons are those of held-out prompts. If there are none, no file is written.

    Args:
        model: Directory of the reward model.
        data: Directory of the stage ``data``.
        classifier: Config of the model, if it is a classifier that was adopted.
        file: File that is written.
        reference: Directory of the reference, if it may be a judge.

    Raises:
        InvalidValue: The comparisons contradict the sign in the config.
    """
    rows = read_rows(data / HELD_OUT)
    if not rows:
        return
    accuracy = compute_accuracy(load_scorer(model, reference=reference), rows)
    if classifier and accuracy.high < 0.5:
        raise InvalidValue(
            f"reward.classifiers[{classifier.name}].higher_is",
            classifier.higher_is,
            f"the other sign: with this one it decides only {accuracy} of the held-out comparisons rightly",
        )
    file.write_text(json.dumps(asdict(accuracy), indent=1) + "\n", encoding="utf-8")


def compute_accuracy(scorer: AnyScorer, rows: Sequence[dict[str, Any]]) -> Estimate:
    """Compute the share of comparisons that a reward model decides rightly. Ties count half.

    Args:
        scorer: The reward model.
        rows: Comparisons with ``prompt``, ``chosen`` and ``rejected``.

    Returns:
        The mean over prompts, with its interval.
    """
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (scorer.score(prompts, [row[side][0]["content"] for row in rows]) for side in SIDES)
    by_prompt: dict[str, list[float]] = {}
    for prompt, difference in zip(prompts, chosen - rejected, strict=True):
        by_prompt.setdefault(json.dumps(prompt), []).append((np.sign(difference) + 1) / 2)
    return over_prompts([np.mean(right) for right in by_prompt.values()])


def read_accuracy(directory: Path) -> dict[str, Estimate]:
    """Read the accuracies that the stage has measured.

    Args:
        directory: Directory of the stage.

    Returns:
        The accuracy of each model by its name. The name of a single model is ''.
    """
    files = sorted(directory.glob(f"{ACCURACY}*.json"))
    return {
        file.stem.removeprefix(ACCURACY).removeprefix("-"): Estimate(**json.loads(file.read_text(encoding="utf-8")))
        for file in files
    }


def accuracy_figures(accuracies: dict[str, Estimate]) -> dict[str, float]:
    """Convert accuracies for the manifest of a bundle.

    Args:
        accuracies: Accuracy of each model by its name.

    Returns:
        Values and limits of the intervals by their keys. A limit that is unknown is left out.
    """
    named = ((f"reward_accuracy_{name}" if name else "reward_accuracy", value) for name, value in accuracies.items())
    return flatten_estimates(dict(named))
