"""Stage ``reward``: a Bradley–Terry reward model on the comparisons, classifiers that exist already, or both.

Either way a high reward is *good* in what the stage leaves: the sign of a classifier whose output means harm is turned
in its last layer, once, so that nothing after it has a sign to get wrong. One model is left in ``model/``, each of
several in ``model/NAME/``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from infalign.errors import InvalidValue
from infalign.estimators import Estimate, over_prompts
from training import data, processes
from training.config import Classifier, Compute, Optimiser, Reward
from training.memory import Pass, model_shape
from training.models import CLASSIFIER, lora, new_classifier, read_classifier, save_model, save_trained
from training.optimisers import MuonAdam
from training.progress import attach
from training.reading import check_reading
from training.runtime import train, trainer_arguments
from training.scorer import Scorer
from training.tokenizer import read_tokenizer, set_template, set_token

SIDES = ("chosen", "rejected")
ACCURACY = "accuracy"
MODEL = "model"
PADS_WITH_END = (
    "If it was trained to be read at the end, give pad_token, a token that ends no conversation; if one token early, a "
    "chat_template that does not write that token"
)


def make_reward_models(
    directory: Path, data_directory: Path, start: Path | None, config: Reward, seed: int, compute: Compute
) -> None:
    """Train from ``start``, adopt what the config asks for, and measure each on the held-out comparisons."""
    several = len(config.models) > 1

    def place(name: str) -> Path:
        return directory / MODEL / name if several else directory / MODEL

    if config.train and start:
        train_reward_model(directory, data_directory, start, config.train, seed, compute, place(config.train.name))
    if not processes.is_first():
        return
    if config.train:
        trained = place(config.train.name)
        check_reading(Scorer.load(trained), "reward.train", str(trained), "Give model.base.pad_token another token")
    for classifier in config.classifiers:
        adopt_classifier(place(classifier.name), classifier)
    for model in config.models:
        stated = model if isinstance(model, Classifier) else None
        file = directory / (f"{ACCURACY}-{model.name}.json" if several else f"{ACCURACY}.json")
        measure(place(model.name), data_directory, stated, file)


def train_reward_model(
    directory: Path, data_directory: Path, start: Path, config: Optimiser, seed: int, compute: Compute, target: Path
) -> None:
    """Train in ``directory``, from the model in ``start``, and save model and tokenizer into ``target``."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)

    model = new_classifier(start)
    longest = data.read_lengths(data_directory)["comparison"].longest
    need = Pass(model_shape(model), compute, longest, config.lora, sequences=len(SIDES), logits=False)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **trainer_arguments(directory, "reward", seed, config.batch, need),
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
    save_trained(trainer, tokenizer, target, merge_onto=lambda: new_classifier(start))


def adopt_classifier(target: Path, config: Classifier) -> None:
    """Save the classifier, with the sign turned if high is worse, into ``target``.

    Raises:
        InvalidValue: there is none, its checkpoint does not fit, it has several outputs or no chat template, or a text
            has several rewards.
    """
    key = f"reward.classifiers[{config.name}]"
    model = read_classifier(config.path, f"{key}.path")
    tokenizer = read_tokenizer(config.path, f"{key}.path", CLASSIFIER)
    if model.config.num_labels != 1:
        raise InvalidValue(f"{key}.path", f"{model.config.num_labels} outputs", "a classifier with one")
    set_template(tokenizer, config.chat_template, f"{key}.chat_template", config.path)
    text_config = model.config.get_text_config()
    if config.pad_token:
        set_token(tokenizer, "pad_token", config.pad_token, f"{key}.pad_token", config.path)
        text_config.pad_token_id = tokenizer.pad_token_id
    check_reading(Scorer(model, tokenizer), f"{key}.path", config.path, PADS_WITH_END)
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        text_config.pad_token_id = tokenizer.pad_token_id
    if config.higher_is == "worse":
        turn_sign(model)
    save_model(model, tokenizer, target)


@torch.no_grad()
def turn_sign(model: Any) -> None:
    """Negate the output of a classifier, in place: weight and bias of its last linear layer."""
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    head.weight.neg_()
    if head.bias is not None:
        head.bias.neg_()


def measure(model: Path, data_directory: Path, stated: Classifier | None, file: Path) -> None:
    """Write ``file``: how often the better of two responses to a held-out prompt has the higher reward.

    Without held-out comparisons there is nothing to measure, and no file.

    Raises:
        InvalidValue: the comparisons contradict the sign that the config states.
    """
    rows = data.read_rows(data_directory / data.HELD_OUT)
    if not rows:
        return
    accuracy = held_out_accuracy(Scorer.load(model), rows)
    if stated and accuracy.high < 0.5:
        raise InvalidValue(
            f"reward.classifiers[{stated.name}].higher_is",
            stated.higher_is,
            f"the other sign: with this one it decides only {accuracy} of the held-out comparisons rightly",
        )
    file.write_text(json.dumps(asdict(accuracy), indent=1) + "\n", encoding="utf-8")


def held_out_accuracy(scorer: Scorer, rows: Sequence[dict[str, Any]]) -> Estimate:
    """Share of comparisons that the rewards decide rightly, ties half, averaged over prompts."""
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (scorer.score(prompts, [row[side][0]["content"] for row in rows]) for side in SIDES)
    by_prompt: dict[str, list[float]] = {}
    for prompt, difference in zip(prompts, chosen - rejected, strict=True):
        by_prompt.setdefault(json.dumps(prompt), []).append((np.sign(difference) + 1) / 2)
    return over_prompts([np.mean(right) for right in by_prompt.values()])


def read_accuracy(directory: Path) -> dict[str, Estimate]:
    """What was measured in the stage's directory, if anything: by the model's name, of a single model by ''."""
    files = sorted(directory.glob(f"{ACCURACY}*.json"))
    return {
        file.stem.removeprefix(ACCURACY).removeprefix("-"): Estimate(**json.loads(file.read_text(encoding="utf-8")))
        for file in files
    }


def accuracy_figures(accuracies: dict[str, Estimate]) -> dict[str, float]:
    """The accuracies for a manifest, with their intervals where there are any."""
    figures: dict[str, float] = {}
    for name, accuracy in accuracies.items():
        key = f"reward_accuracy_{name}" if name else "reward_accuracy"
        figures |= {key: accuracy.value, f"{key}_low": accuracy.low, f"{key}_high": accuracy.high}
    return {key: value for key, value in figures.items() if value == value}
