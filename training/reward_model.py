"""Stage ``reward``: a Bradley–Terry reward model on the comparisons, or a classifier that exists already.

Either way a high reward is *good* in what the stage leaves: the sign of a classifier whose output means harm is turned
in its last layer, once, so that nothing after it has a sign to get wrong.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from training import data
from training.config import Classifier, Compute, Optimiser
from training.models import lora, save_model, save_trained
from training.optimisers import MuonAdam
from training.progress import attach
from training.runtime import train, trainer_arguments
from training.scorer import Scorer
from training.tokenizer import check_padding, set_template

SIDES = ("chosen", "rejected")
ACCURACY = "accuracy.json"


def train_reward_model(
    directory: Path, data_directory: Path, start: Path, config: Optimiser, seed: int, compute: Compute
) -> None:
    """Train, from the model in ``start``, and save model and tokenizer into ``directory``/model."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)

    def headed() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype="auto")

    trainer = RewardTrainer(
        model=headed(),
        args=RewardConfig(
            **trainer_arguments(directory, "reward", seed, compute, config.batch),
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            max_length=None,
            logging_steps=10,
        ),
        train_dataset=Dataset.from_list(data.read_rows(data_directory / data.PREFERENCES)),
        processing_class=tokenizer,
        peft_config=lora(config.lora, "SEQ_CLS") if config.lora else None,
    )
    if config.optimiser == "muon":
        trainer.optimizer = MuonAdam(trainer.model, config.learning_rate, others=1.0)
    attach(trainer, "reward", ("loss", "accuracy"), directory, compute.report_to)
    train(trainer)
    save_trained(trainer, tokenizer, directory / "model", merge_onto=headed)


def adopt_classifier(directory: Path, config: Classifier) -> None:
    """Save the classifier, with the sign turned if high is worse, into ``directory``/model.

    Raises:
        InvalidValue: there is none, or it cannot judge conversations.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path)
        model = AutoModelForSequenceClassification.from_pretrained(config.path, dtype="auto")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        accepted = f"a sequence classifier, by directory or hub id ({reason})"
        raise InvalidValue("reward.classifier.path", config.path, accepted) from error
    if model.config.num_labels != 1:
        raise InvalidValue("reward.classifier.path", f"{model.config.num_labels} outputs", "a classifier with one")
    set_template(tokenizer, config.chat_template, "reward.classifier.chat_template", config.path)
    check_padding(tokenizer, "reward.classifier.path")
    if config.higher_is == "worse":
        turn_sign(model)
    save_model(model, tokenizer, directory / "model")


@torch.no_grad()
def turn_sign(model: Any) -> None:
    """Negate the output of a classifier, in place: weight and bias of its last linear layer."""
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    head.weight.neg_()
    if head.bias is not None:
        head.bias.neg_()


def measure(directory: Path, data_directory: Path, stated: Classifier | None) -> None:
    """Write ``accuracy.json``: how often the better of two responses to a held-out prompt has the higher reward.

    Without held-out comparisons there is nothing to measure, and no file.

    Raises:
        InvalidValue: the comparisons contradict the sign that the config states.
    """
    rows = data.read_rows(data_directory / data.HELD_OUT)
    if not rows:
        return
    accuracy = held_out_accuracy(Scorer.load(directory / "model"), rows)
    if stated and accuracy.high < 0.5:
        raise InvalidValue(
            "reward.classifier.higher_is",
            stated.higher_is,
            f"the other sign: with this one it decides only {accuracy} of the held-out comparisons rightly",
        )
    (directory / ACCURACY).write_text(json.dumps(asdict(accuracy), indent=1) + "\n", encoding="utf-8")


def held_out_accuracy(scorer: Scorer, rows: Sequence[dict[str, Any]]) -> Estimate:
    """Share of comparisons that the rewards decide rightly, ties half, averaged over prompts."""
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (scorer.score(prompts, [row[side][0]["content"] for row in rows]) for side in SIDES)
    by_prompt: dict[str, list[float]] = {}
    for prompt, difference in zip(prompts, chosen - rejected, strict=True):
        by_prompt.setdefault(json.dumps(prompt), []).append((np.sign(difference) + 1) / 2)
    return over_prompts([np.mean(right) for right in by_prompt.values()])


def read_accuracy(directory: Path) -> Estimate | None:
    """What :func:`measure` has written, if there was anything to measure."""
    file = directory / ACCURACY
    return Estimate(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def accuracy_figures(accuracy: Estimate | None) -> dict[str, float]:
    """The accuracy for a manifest, with its interval where there is one."""
    if accuracy is None:
        return {}
    figures = {"": accuracy.value, "_low": accuracy.low, "_high": accuracy.high}
    return {f"reward_accuracy{end}": value for end, value in figures.items() if value == value}
