"""Stage ``scorer``: trains a prefix scorer (Mudgal et al., arXiv 2310.17022) on the rollouts of training prompts.

It is measured on the rollouts of validation prompts, on which the thresholds of early rejection are fitted too.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoTokenizer, set_seed

from infalign.files import directory_digest, reward_models
from infalign.manifest import SamplingLaw, ScorerRecord
from infalign.prefix_scorer import save_scorer
from infalign.storage import load_calibration
from infalign.templates import template_hash
from training import processes
from training.config import Compute, PrefixScorer
from training.memory import Pass, model_shape
from training.models import new_classifier
from training.prefix_figures import fit_rejections, fit_shares, measure_scorer, predict
from training.prefix_rows import find_edges, make_rows, read_scored_prompts
from training.prefix_trainer import PrefixArguments, PrefixTrainer
from training.supervised import fit_rows

FIGURES = "figures.json"
"""File of everything that was measured."""
CHECKPOINTS = 16
"""Checkpoints of early rejection in a response of the greatest length."""
HEAD = "score.weight"
"""Weights of the head of a classifier on a causal LM. Encoders call theirs otherwise."""


def make_prefix_scorer(
    directory: Path,
    *,
    data: Path,
    rollouts: Path,
    reference: Path,
    reward: Path,
    calibration: Path,
    law: SamplingLaw,
    config: PrefixScorer,
    compute: Compute,
    seed: int,
) -> None:
    """Train the prefix scorer, measure it, and save it into ``directory``/model.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        rollouts: Directory of the stage ``rollouts``.
        reference: Directory of the reference model.
        reward: Directory of the reward model, or of several.
        calibration: Directory of the stage ``calibrate``.
        law: Sampling law of the rollouts.
        config: How the scorer learns.
        compute: How the trainer uses the machine.
        seed: Seed of the stage: of the head's first weights and of the order of the rows.

    Raises:
        InvalidValue: There are no validation prompts, or the reference cannot be made a classifier.
    """
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
    combination = load_calibration(calibration)[0]
    learned = read_scored_prompts(data, "train", rollouts, tokenizer, combination)
    held_out = read_scored_prompts(data, "validation", rollouts, tokenizer, combination)
    trunk, start = choose_trunk(reward, reference)
    edges = find_edges(learned, config.bins)
    longest = max(len(prompt.tokens) + max(map(len, prompt.responses)) for prompt in learned)
    target = directory / "model"

    def load_model() -> Any:
        model = new_classifier(start, 2 * config.bins, "scorer")
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return model

    fit_rows(
        (PrefixTrainer, PrefixArguments),
        load_model,
        tokenizer,
        make_rows(learned, config.responses, edges),
        directory=directory,
        target=target,
        stage="scorer",
        config=config,
        estimate_pass=lambda model: Pass(model_shape(model), compute, longest, config.lora, logits=False),
        seed=seed,
        figures=("loss",),
        task="SEQ_CLS",
    )
    if not processes.is_first():
        return
    checkpoint = max(1, law.max_tokens // CHECKPOINTS)
    predictions = predict(target, held_out, edges, checkpoint)
    figures = measure_scorer(predictions, combination)
    sharpness = figures.places["end"]["log_score"]
    if sharpness.value <= 0 or sharpness.low <= 0:
        print(
            "scorer: for whole responses to validation prompts it is no better than a uniform law: log-score "
            f"{sharpness.value:.3f} [{sharpness.low:.3f}, {sharpness.high:.3f}]. Give it more responses, more epochs "
            "or another learning rate",
            file=sys.stderr,
        )
    (target / FIGURES).write_text(json.dumps(figures.to_json(), indent=1) + "\n", encoding="utf-8")
    record = ScorerRecord(
        reference=directory_digest(reference),
        reward_model=directory_digest(reward),
        calibration=directory_digest(calibration),
        chat_template=template_hash(tokenizer),
        trunk=trunk,
        edges=edges,
        checkpoint=checkpoint,
        limit=config.limit,
        rejection=fit_rejections(predictions, config.limit),
        shares=fit_shares(predictions),
        measured=figures.flatten(),
    )
    save_scorer(target, record)


def choose_trunk(reward: Path, reference: Path) -> tuple[str, Path]:
    """Choose the model that the scorer starts from.

    The reward model has learned what the reward depends on. It can be used if there is one alone, it is a classifier on
    a causal LM, and it has the reference's tokens, since a text that is cut anywhere can be read only by its tokens.

    Args:
        reward: Directory of the reward model, or of several.
        reference: Directory of the reference model.

    Returns:
        ``reward`` or ``reference``, and the directory of that model.
    """
    models = reward_models(reward)
    if list(models.values()) == [reward] and _is_causal(reward) and _vocabulary(reward) == _vocabulary(reference):
        return "reward", reward
    return "reference", reference


def _is_causal(reward: Path) -> bool:
    for file in reward.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            if HEAD in weights.keys():  # noqa: SIM118 - the file is no dictionary
                return True
    return False


def _vocabulary(model: Path) -> dict[str, int]:
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    return dict(tokenizer.get_vocab())
